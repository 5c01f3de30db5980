"""Seconds and bytes of a step, as formulas over candidates."""
