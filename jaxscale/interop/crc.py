"""CRC-32 of a whole from those of its parts, so that parts may be summed in any order and by anyone."""

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320


def combine(parts: Iterable[tuple[int, int]]) -> int:
    """`zlib.crc32` of the concatenation of parts, each given as its own `zlib.crc32` and its length in bytes.

    Appending n bytes multiplies the sum so far by x^(8n) modulo the polynomial (as zlib's crc32_combine does).
    """
    total = 0
    for crc, length in parts:
        total = _multiply(_power_of_x(8 * length), total) ^ crc
    return total


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials modulo the CRC's; bit 31 is the coefficient of x^0."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=1024)
def _power_of_x(exponent: int) -> int:
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        exponent >>= 1
    return result
