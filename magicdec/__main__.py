"""`python -m magicdec`."""

from magicdec.cli import main

if __name__ == "__main__":
    main()
