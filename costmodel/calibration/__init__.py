"""Fitting hardware profiles to measurements, and checking predictions against published ones."""
