"""Runs held against their predictions, and the calibration that comes of it."""
