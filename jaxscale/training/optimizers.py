"""AdamW, Adafactor, Lion and Muon, each an optax transformation of parameters by path.

All follow one pattern: p <- p - rate(step) * (direction + weight_decay * p), the decay only for
matrices. Embeddings and the head are matrices here, as for GPT-3 and Llama trainers (Megatron-LM,
nanoGPT: everything with two dims decays); norms, biases and scalars never decay, stacked or not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation

from jaxscale.config.optimizer_section import OptimizerSection
from jaxscale.models.description import Description, Params
from jaxscale.training.adafactor import scale_by_adafactor
from jaxscale.training.muon import matrix_shapes, muon_steps
from jaxscale.training.parameter_kinds import decay_mask
from jaxscale.training.schedules import Schedule

Named = tuple[str, GradientTransformation]


def make_optimizer(
    section: OptimizerSection, schedule: Schedule, description: Description
) -> GradientTransformation:
    """The update rule for parameters of `description`.

    schedule: rate by step, peak included. Muon's AdamW follows the same curve with peak
    `adam_learning_rate`. State and updates are fp32 (or wider, if parameters are) whatever the
    dtype of parameters and gradients.
    """
    makers: dict[str, Callable[[], GradientTransformation]] = {
        "adamw": lambda: _decoupled(_adam(section), section, schedule, description),
        "adafactor": lambda: _decoupled(
            [("adafactor", scale_by_adafactor(description))], section, schedule, description
        ),
        "lion": lambda: _decoupled(
            [("lion", optax.scale_by_lion(section.beta1, section.beta2))],
            section,
            schedule,
            description,
        ),
        "muon": lambda: _muon(section, schedule, description),
    }
    return in_float32(makers[section.name]())


def in_float32(inner: GradientTransformation) -> GradientTransformation:
    """`inner` seeing parameters and gradients as fp32, or as they are where they are wider."""

    def init(params: Params) -> optax.OptState:
        return inner.init(_widened(params))

    def update(
        gradient: Params, state: optax.OptState, params: Params
    ) -> tuple[Params, optax.OptState]:
        updates, new_state = inner.update(_widened(gradient), state, _widened(params))
        return updates, new_state

    return GradientTransformation(init, update)


def _widened(params: Params) -> Params:
    return {
        path: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for path, leaf in params.items()
    }


def _muon(
    section: OptimizerSection, schedule: Schedule, description: Description
) -> GradientTransformation:
    """Muon for hidden matrices, AdamW for embeddings, head, norms, biases, unclear matrices."""
    hidden = matrix_shapes(description)
    ratio = (section.adam_learning_rate or section.learning_rate) / section.learning_rate

    def adam_schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return ratio * schedule(step)

    return optax.partition(
        {
            "hidden": _decoupled(
                muon_steps(description, section.momentum), section, schedule, description
            ),
            "others": _decoupled(_adam(section), section, adam_schedule, description),
        },
        {path: "hidden" if path in hidden else "others" for path in description},
    )


def _adam(section: OptimizerSection) -> list[Named]:
    return [("adam", optax.scale_by_adam(section.beta1, section.beta2, section.epsilon))]


def _decoupled(
    direction: list[Named], section: OptimizerSection, schedule: Schedule, description: Description
) -> GradientTransformation:
    """`direction`, then decoupled weight decay (Loshchilov & Hutter 2019), then the rate."""
    decay = optax.add_decayed_weights(section.weight_decay, decay_mask(description))
    rate = optax.scale_by_learning_rate(schedule)
    return optax.named_chain(*direction, ("decay", decay), ("schedule", rate))
