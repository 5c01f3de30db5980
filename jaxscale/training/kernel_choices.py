"""Which kernels a run's train step takes on devices that need not be there: traced, neither lowered nor compiled."""

from collections.abc import Sequence
from typing import cast

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.config.run import RunConfig
from jaxscale.kernels.registry import Choice, recording
from jaxscale.kernels.target import Target
from jaxscale.training.lowering import abstract_job


def kernel_choices(config: RunConfig, plan: Plan, target: Target) -> Sequence[Choice]:
    """The choices of one step of `config` under `plan`, as if all its devices were `target`s.

    Raises UserError for a plan that does not fit the model or the batch, and for a kernel that was asked for by name
    and declines.
    """
    device = AbstractDevice(target.device_kind, None, target.platform)
    mesh = AbstractMesh(
        tuple(plan.mesh_shape[axis] for axis in MESH_AXES),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        abstract_device=device,
    )
    # All that tracing asks of a mesh, an abstract one answers.
    job = abstract_job(config, plan, cast("Mesh", mesh))
    with jax.sharding.use_abstract_mesh(mesh), recording() as choices:
        jax.eval_shape(job.step, job.state, job.batch)
    return choices
