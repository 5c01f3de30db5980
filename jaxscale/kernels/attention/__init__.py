"""Causal attention with grouped heads, windows, soft-caps and packed documents."""
