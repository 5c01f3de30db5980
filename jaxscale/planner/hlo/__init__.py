"""Reads compiled programs: products, loops and collectives of optimized HLO text, without importing JAX."""
