"""How large numbers may be that a person writes."""

# Sequences and tokens: the product of two still fits into 64 bits.
LARGEST_COUNT = 2**31 - 1
# Threads, processes and batches in memory: far more than any host has use for, and not too many for it to begin.
MOST_AT_ONCE = 1024
