"""The real train step of a configuration and a plan, lowered for devices that need not be there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.parallel.mesh import check_batch, make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.batches import batch_sharding
from jaxscale.training.job import Job, check_positions
from jaxscale.training.losses import Batch
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import TrainState, abstract_state, state_shardings, state_specs
from jaxscale.training.step import StepFunction, jit_step, make_train_step

# What the loader gives for every batch (`data.packing.pack`), and what it may leave to the model.
_FIELDS = ("tokens", "targets", "segment_ids", "positions")
_OF_PACKED_ROWS = ("segment_ids", "positions")


@dataclass(frozen=True)
class AbstractJob:
    """A step and what it takes; nothing of it is an array.

    shardings: of the state that the step returns.
    """

    placement: Placement
    step: StepFunction
    state: TrainState
    batch: Batch
    shardings: TrainState

    def arguments(self) -> dict[str, Any]:
        """What the step takes, in the parts that a planner predicts: abstract arrays with shardings."""
        return {
            "parameters": self.state.params,
            "optimizer": self.state.optimizer,
            "average": self.state.average,
            "step": self.state.step,
            "batch": self.batch,
        }

    def lower(self) -> jax.stages.Lowered:
        """The step, lowered as `jaxscale train` compiles it: the state donated, its shardings kept."""
        jitted = jit_step(self.step, self.shardings, self.placement)
        with jax.set_mesh(self.placement.mesh):
            return jitted.lower(self.state, self.batch)


def abstract_job(
    config: RunConfig,
    plan: Plan,
    devices: Sequence[jax.Device] | Mesh,
    *,
    packed: bool = True,
) -> AbstractJob:
    """The parts of a run that its compiler sees: `make_job` without a data set.

    devices: or a mesh of the plan's axes. packed: whether rows have segment ids and positions; those of the loader
    always have. Raises UserError for a plan that does not fit the model, the batch or the devices.
    """
    check_positions(config)
    training = config.training
    check_batch(plan, training.global_batch, config.data.sequence_length)
    model = blueprint(model_builder(config.model))
    mesh = make_mesh(plan, devices) if isinstance(devices, Sequence) else devices
    placement = place(plan, mesh, model.description)
    schedule = learning_rate(
        training.schedule, peak=training.optimizer.learning_rate, steps=training.steps
    )
    stored = placement.stored(model.description)
    optimizer = make_optimizer(training.optimizer, schedule, stored)
    specs = state_specs(stored, optimizer, averaged=training.ema_decay is not None)
    return AbstractJob(
        placement=placement,
        step=make_train_step(model, placement, optimizer, schedule, training),
        state=abstract_state(specs, placement),
        batch=_abstract_batch(config, placement, packed=packed),
        shardings=state_shardings(specs, placement),
    )


def abstract_parts(job: Job) -> AbstractJob:
    """The same parts of a job that is there already."""
    config, placement = job.config, job.placement
    return AbstractJob(
        placement=placement,
        step=make_train_step(job.model, placement, job.optimizer, job.schedule, config.training),
        state=abstract_state(job.specs, placement),
        batch=_abstract_batch(config, placement, packed=True),
        shardings=state_shardings(job.specs, placement),
    )


def lower_step(
    config: RunConfig, plan: Plan, devices: Sequence[jax.Device], *, packed: bool = True
) -> jax.stages.Lowered:
    """The train step of `config` under `plan`, lowered for `devices`, as `jaxscale train` would compile it.

    devices: attached ones, or those of `parallel.topology.abstract_devices`. Creates no array. Raises UserError as
    `abstract_job` does.
    """
    return abstract_job(config, plan, devices, packed=packed).lower()


def _abstract_batch(config: RunConfig, placement: Placement, *, packed: bool) -> Any:
    shape = config.training.global_batch, config.data.sequence_length
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(placement, *shape))
    absent = () if packed else _OF_PACKED_ROWS
    return {name: None if name in absent else rows for name in _FIELDS}
