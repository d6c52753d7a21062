"""What a GPU does with magicdec's executor, measured in ten minutes: see `scripts/gpu-check --help`."""
