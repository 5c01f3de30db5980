"""Exponential moving average of the parameters."""

import jax
import jax.numpy as jnp

from jaxscale.models.description import Params


def init_ema(params: Params) -> Params:
    """The average before the first update: the parameters, as fp32 copies."""
    return {path: jnp.array(param, jnp.float32, copy=True) for path, param in params.items()}


def update_ema(ema: Params, params: Params, decay: float, step: jax.typing.ArrayLike) -> Params:
    """The average after update number `step` (0 for the first), in fp32.

    ema + (1 - d_t) (params - ema) with d_t = min(decay, (1 + t) / (10 + t)). The average would
    otherwise remember its start for 1 / (1 - decay) steps; this d_t forgets it after a few, as
    TensorFlow's ExponentialMovingAverage with `num_updates` does. 0.999 is reached at t = 8990.
    """
    t = jnp.asarray(step, jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
    return {
        path: average + weight * (params[path].astype(jnp.float32) - average)
        for path, average in ema.items()
    }
