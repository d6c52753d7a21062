"""The public functions: what users can ask for, one module each. Names in, typed results out."""
