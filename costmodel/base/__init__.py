"""Errors, units, file reading and strict validation, used by every other package."""
