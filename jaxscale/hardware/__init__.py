"""Facts about chips, with sources; no JAX."""

from jaxscale.hardware.chips import CHIPS, Chip, find_chip

__all__ = ["CHIPS", "Chip", "find_chip"]
