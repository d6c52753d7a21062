"""Plans and measurements as figures, tables and one HTML page."""
