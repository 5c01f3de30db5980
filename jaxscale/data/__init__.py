"""Text to tokens to a store to batches: see `prepare`, `store` and `loader`."""
