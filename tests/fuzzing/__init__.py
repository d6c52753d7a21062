"""Random hostile inputs for every reader and command, and the rules that each answer must keep; `scripts/fuzz` runs it."""
