"""What can be measured of an op: a call, what it costs at least, what runs it, and what there is to tune."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.choice import Choice
from jaxscale.kernels.registry import Implementation, choose
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config


@dataclass(frozen=True)
class Case:
    """One call of an op on one device.

    flops: multiplications and additions. moved: bytes, each operand and result once. operands: shapes and dtypes of
    the inputs. run: the function that an implementation makes of them. candidates: by implementation, the
    configurations to try beside its default. draw: one set of inputs, of a key, where they are not normal numbers.
    """

    op: str
    call: Any
    implementations: Sequence[Implementation[Any]]
    flops: float
    moved: float
    operands: tuple[jax.ShapeDtypeStruct, ...]
    run: Callable[[Choice, Target], Callable[..., Any]]
    candidates: Mapping[str, Sequence[Config]]
    draw: Callable[[jax.Array], tuple[jax.Array, ...]] | None = None

    @property
    def name(self) -> str:
        return f"{self.title} {self.call.dtype}"

    @property
    def title(self) -> str:
        """The name without the dtype."""
        sizes = " ".join(f"{name}={size}" for name, size in self.call.sizes.items())
        return f"{self.op} {self.call.layout} {sizes}"

    def inputs(self, key: jax.Array) -> tuple[jax.Array, ...]:
        """One set of random inputs."""
        return normals(key, self.operands) if self.draw is None else self.draw(key)

    def baseline(self, target: Target) -> str:
        """What others are measured beside: the implementation that `auto` takes where no table has the call."""
        return choose(self.op, self.implementations, target, self.call).name

    def roofline(self, flops_per_second: float, bytes_per_second: float | None) -> float:
        """Seconds below which no device of such rates can be. Without a bandwidth: those of arithmetic alone."""
        arithmetic = self.flops / flops_per_second
        if bytes_per_second is None:
            return arithmetic
        return max(arithmetic, self.moved / bytes_per_second)


def moved_bytes(shapes: Sequence[jax.ShapeDtypeStruct]) -> float:
    return float(sum(shape.size * shape.dtype.itemsize for shape in shapes))


def normals(key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[jax.Array, ...]:
    """Random normal numbers: zeros draw less power and run up to 13 % faster on a GPU."""
    keys = jax.random.split(key, len(shapes))
    return tuple(
        jax.random.normal(key, shape.shape, jnp.float32).astype(shape.dtype)
        for key, shape in zip(keys, shapes, strict=True)
    )
