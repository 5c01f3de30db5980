"""Learning rate by step: linear warmup, then cosine, linear, warmup-stable-decay or constant."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxscale.config.optimizer_section import ScheduleSection
from jaxscale.errors import UserError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def learning_rate(section: ScheduleSection, *, peak: float, steps: int) -> Schedule:
    """Learning rate of step 0, 1, ..., `steps` - 1 (fp32; later steps repeat the last).

    Update number t = step + 1 is what the shapes see: the rate is peak * t / warmup_steps up to t
    = warmup_steps, and peak * final_fraction exactly at t = steps. The first update therefore
    already moves. wsd decays linearly over the last round(decay_fraction * steps) updates (Hu et
    al. 2024, MiniCPM, section 4).

    Raises UserError if warmup and decay do not fit into `steps`.
    """
    start = _decay_start(section, steps)
    shape = _cosine if section.name == "cosine" else _line
    final = 1.0 if section.name == "constant" else section.final_fraction

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        update = jnp.asarray(step, jnp.float32) + 1
        warm = jnp.minimum(update / max(section.warmup_steps, 1), 1.0)
        progress = jnp.clip((update - start) / (steps - start), 0.0, 1.0)
        return peak * jnp.where(update < start, warm, final + (1 - final) * shape(progress))

    return rate


def _decay_start(section: ScheduleSection, steps: int) -> int:
    """Updates before the decay: the rate is at its peak there."""
    warmup = section.warmup_steps
    if warmup >= steps:
        raise UserError(
            f"schedule: {warmup} warmup steps leave nothing of a run of {steps} steps; set "
            f"training.steps above {warmup} or schedule.warmup_steps to at most {steps - 1}"
        )
    if section.name != "wsd":
        return warmup
    decay = max(round(section.decay_fraction * steps), 1)
    if warmup + decay > steps:
        raise UserError(
            f"schedule: {warmup} warmup steps and {decay} decay steps ({section.decay_fraction:g} "
            f"of the run) exceed its {steps} steps; set schedule.decay_fraction to at most "
            f"{(steps - warmup) / steps:.3g}"
        )
    return steps - decay


def _cosine(progress: jax.Array) -> jax.Array:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    return 0.5 * (1 + jnp.cos(math.pi * progress))


def _line(progress: jax.Array) -> jax.Array:
    return 1 - progress
