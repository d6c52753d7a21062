"""Text and HTML for people: aligned tables and whole sentences."""
