"""Candidates, how they are laid over links, which fit, which are fastest, and why others are not among them."""
