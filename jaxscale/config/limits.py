"""How large numbers may be that a person writes."""

# Sequences and tokens: the product of two still fits into 64 bits.
LARGEST_COUNT = 2**31 - 1
