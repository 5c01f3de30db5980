"""What can be measured of an op: a call, what it costs at least, what runs it, and what there is to tune."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxscale.kernels.choice import Choice
from jaxscale.kernels.registry import Implementation
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config


@dataclass(frozen=True)
class Case:
    """One call of an op on one device.

    flops: multiplications and additions. moved: bytes, each operand and result once. operands: shapes and dtypes, of
    which inputs are drawn. run: the function that an implementation makes of them. candidates: by implementation,
    the configurations to try beside its default.
    """

    op: str
    call: Any
    implementations: Sequence[Implementation[Any]]
    flops: float
    moved: float
    operands: tuple[jax.ShapeDtypeStruct, ...]
    run: Callable[[Choice, Target], Callable[..., Any]]
    candidates: Mapping[str, Sequence[Config]]

    @property
    def name(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.call.sizes.items())
        return f"{self.op} {self.call.layout} {sizes} {self.call.dtype}"

    def roofline(self, flops_per_second: float, bytes_per_second: float | None) -> float:
        """Seconds below which no device of such rates can be. Without a bandwidth: those of arithmetic alone."""
        arithmetic = self.flops / flops_per_second
        if bytes_per_second is None:
            return arithmetic
        return max(arithmetic, self.moved / bytes_per_second)


def moved_bytes(shapes: Sequence[jax.ShapeDtypeStruct]) -> float:
    return float(sum(shape.size * shape.dtype.itemsize for shape in shapes))
