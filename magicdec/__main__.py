"""`python -m magicdec`."""

from magicdec.cli.main import main

if __name__ == "__main__":
    main()
