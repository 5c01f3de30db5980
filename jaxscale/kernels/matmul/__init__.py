"""Products with weights: forward, and the gradients by input and by weight, each by the kernel chosen for it."""
