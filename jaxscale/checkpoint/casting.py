"""Arrays to another floating-point type, with every value counted that the new type is too small for."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxscale.errors import UserError

FLOAT_NAMES = {
    "fp32": "float32",
    "float32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
}

_MAX_LINES = 10


def float_dtype(name: str) -> np.dtype[Any]:
    """The dtype that a person means by `bf16`. Raises UserError for what is none of ours."""
    if name not in FLOAT_NAMES:
        raise UserError(
            f"{name!r} is not a dtype to store weights in: use one of {', '.join(FLOAT_NAMES)}"
        )
    return jnp.dtype(FLOAT_NAMES[name])


def is_float(dtype: np.dtype[Any]) -> bool:
    """bfloat16 and the eight-bit types included, which NumPy does not count among its own."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The values rounded to `dtype`; what is too large for it becomes infinite (see `num_overflows`)."""
    with np.errstate(over="ignore", invalid="ignore"):
        converted: np.ndarray[Any, Any] = values.astype(dtype, copy=False)
    return converted


def num_overflows(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> int:
    """How many finite values became infinite."""
    if after.dtype.itemsize >= before.dtype.itemsize and after.dtype != np.float16:
        return 0
    if not _any_infinite(after):
        return 0
    return int(np.count_nonzero(np.isinf(after) & np.isfinite(before)))


def _any_infinite(values: np.ndarray[Any, Any]) -> bool:
    """Or not a number. Two-byte types by their bits, whose largest these are: isinf takes ten times as long."""
    if values.dtype.itemsize != 2:
        return bool(np.isinf(values).any())
    if values.size == 0:
        return False
    infinity = 0x7C00 if values.dtype == np.float16 else 0x7F80
    positive, negative = values.view(np.int16).max(), values.view(np.uint16).max()
    return bool(positive >= infinity or negative >= 0x8000 + infinity)


def overflow_message(source: str, overflows: Mapping[str, int], dtype: np.dtype[Any]) -> str:
    """What to tell the person whose cast does not fit; `overflows` counts values by tensor."""
    shown = sorted(overflows.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"  {name}: {count:,}" for name, count in shown[:_MAX_LINES]]
    if len(shown) > _MAX_LINES:
        lines.append(f"  and {len(shown) - _MAX_LINES} more")
    advice = "bf16 has the range of fp32" if dtype == np.float16 else "fp32 holds them all"
    return "\n".join(
        [
            f"{sum(overflows.values()):,} values of {source} are too large for {dtype.name} and would become infinite:",
            *lines,
            f"Use another dtype ({advice}), or accept it with --allow-overflow",
        ]
    )
