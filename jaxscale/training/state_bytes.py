"""What a run keeps beside its parameters, as training itself describes it."""

import jax

from jaxscale.config.run import RunConfig
from jaxscale.models.description import Description, ParamSpec
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import state_specs


def kept_bytes_per_parameter(config: RunConfig, description: Description) -> float:
    """Bytes of the optimizer's state and of averaged parameters, over the number of parameters."""
    training = config.training
    schedule = learning_rate(
        training.schedule, peak=training.optimizer.learning_rate, steps=training.steps
    )
    optimizer = make_optimizer(training.optimizer, schedule, description)
    specs = state_specs(description, optimizer, averaged=training.ema_decay is not None)
    kept: list[ParamSpec] = jax.tree.leaves(
        (specs.optimizer, specs.average), is_leaf=lambda leaf: isinstance(leaf, ParamSpec)
    )
    return sum(spec.num_bytes for spec in kept) / sum(spec.size for spec in description.values())
