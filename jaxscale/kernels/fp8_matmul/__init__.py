"""Products in eight bits: operands are scaled into the range of fp8, multiplied, and scaled back."""
