"""Mixed precision as one cast: fp32 master parameters, a compute dtype for the forward and backward pass."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config.plan import Precision
from jaxscale.models.description import Params

# Processors without fast bfloat16 lose by it, accelerators win; both keep fp32 master parameters and fp32 reductions.
_AUTO: Mapping[str, Precision] = MappingProxyType(
    {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}
)


def compute_dtype(precision: Precision, platform: str) -> np.dtype[Any]:
    """The dtype of activations and of the parameters that the forward pass sees."""
    return jnp.dtype(_AUTO[platform] if precision == "auto" else precision)


def cast(params: Params, dtype: np.dtype[Any]) -> Params:
    """Floating-point parameters in `dtype`; the gradient of this cast brings gradients back to the master dtype."""

    def convert(value: jax.Array) -> jax.Array:
        return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value

    return {path: convert(value) for path, value in params.items()}
