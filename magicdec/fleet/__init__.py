"""Machines side by side, and how many requests they serve within limits."""
