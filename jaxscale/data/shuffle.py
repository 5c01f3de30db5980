"""A random order of n things that needs no memory: a keyed permutation of 0..n-1.

A Feistel network permutes a power of four that is at least n; indices that land outside 0..n-1
are sent through again until they land inside ("cycle walking": Black and Rogaway, Ciphers with
Arbitrary Finite Domains, 2002). Everything is 64-bit integer arithmetic in NumPy, so that the
order never changes with the version of a library.
"""

import numpy as np
from jaxtyping import Int64, UInt64

NUM_ROUNDS = 8


def mix(*values: Int64[np.ndarray, "*shape"] | int) -> UInt64[np.ndarray, "*shape"]:
    """A 64-bit hash of the values together (the finalizer of SplitMix64 after each).

    Integers of any size and sign count by their lowest 64 bits.
    """
    state = np.zeros(np.broadcast_shapes(*(np.shape(value) for value in values), (1,)), np.uint64)
    for value in values:
        word = np.uint64(value % (1 << 64)) if isinstance(value, int) else value.astype(np.uint64)
        state = _scramble(state + word + np.uint64(0x9E3779B97F4A7C15))
    return state


def permute(
    index: Int64[np.ndarray, "rows"],
    size: int,
    key: UInt64[np.ndarray, "rows"],
) -> Int64[np.ndarray, "rows"]:
    """Where each index of 0..size-1 goes under the permutation of its key."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    result = _feistel(index.astype(np.uint64), half_bits, key)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, key[outside])
        outside = result >= size
    permuted: Int64[np.ndarray, "rows"] = result.astype(np.int64)
    return permuted


def _feistel(
    index: UInt64[np.ndarray, "rows"], half_bits: int, key: UInt64[np.ndarray, "rows"]
) -> UInt64[np.ndarray, "rows"]:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = index >> np.uint64(half_bits), index & mask
    for round_ in range(NUM_ROUNDS):
        noise = _scramble(right ^ _scramble(key + np.uint64(round_)))
        left, right = right, left ^ (noise & mask)
    return (left << np.uint64(half_bits)) | right


def _scramble(word: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    once = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    twice = (once ^ (once >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: UInt64[np.ndarray, "*shape"] = twice ^ (twice >> np.uint64(31))
    return scrambled
