"""Lays any model over any cluster: memory and time of every layout by formula, ranked, explained, checked by the
compiler."""
