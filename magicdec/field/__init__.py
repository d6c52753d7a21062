"""Measurements as people publish them: CSV files read by the names of their columns, and the same quantities predicted."""
