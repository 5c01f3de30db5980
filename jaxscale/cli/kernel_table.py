"""Which kernels a run takes on a cluster that need not be there, and why."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import typer

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.choice_table import choice_data, choice_table
from jaxscale.kernels.target import Target
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.parallel.gpu_targets import GPU_TARGETS
from jaxscale.parallel.mesh import auto_plan
from jaxscale.planner.search.answer import Answer
from jaxscale.planner.search.proposal import to_plan
from jaxscale.planner.vocabulary.layout import is_executable
from jaxscale.training.job import is_by_hand, plan_as_given
from jaxscale.training.kernel_choices import kernel_choices

# As JAX spells them.
_TPU_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "TPU v4": "TPU v4",
        "TPU v5e": "TPU v5 lite",
        "TPU v5p": "TPU v5",
        "TPU v6e": "TPU v6 lite",
        "TPU v7x": "TPU7x",
    }
)


def show_kernels(config: Path, overrides: Sequence[str], on: str, as_json: object) -> None:
    """Print the choices of the run's train step, under its plan or, for `auto`, all devices on `fsdp`."""
    run = load_config(config, overrides)
    cluster = parse_cluster(on)
    plan = plan_as_given(run)
    if not is_by_hand(plan):
        description = blueprint(model_builder(run.model)).description
        plan = auto_plan(description, cluster.num_devices, run.training.global_batch, plan)
    choices = kernel_choices(run, plan, target_of_cluster(cluster))
    typer.echo(json.dumps(choice_data(choices), indent=1) if as_json else choice_table(choices))


def kernels_of_plan(found: Answer, run: RunConfig, rank: int) -> Sequence[Choice]:
    """The choices of a run's step under the plan of a rank. Raises UserError for one that the trainer does not run."""
    layout = found.plans[rank - 1].prediction.layout
    if not is_executable(layout):
        raise UserError(
            f"--kernels: the trainer does not run plan {rank} yet: add --executable, or choose another with --show"
        )
    plan = to_plan(layout, run.plan if isinstance(run.plan, Plan) else Plan())
    return kernel_choices(run, plan, target_of_cluster(found.problem.cluster))


def target_of_cluster(cluster: Cluster) -> Target:
    """The kind of a cluster's devices, as JAX would report it. Raises UserError where that is not known."""
    name = cluster.chip.name
    if cluster.kind == "cpu":
        return Target("cpu", "cpu")
    if cluster.kind == "tpu" and name in _TPU_KINDS:
        return Target("tpu", _TPU_KINDS[name])
    if cluster.kind == "gpu" and name in GPU_TARGETS:
        return Target("gpu", GPU_TARGETS[name].name)
    known = ", ".join((*_TPU_KINDS, *GPU_TARGETS))
    raise UserError(f"how JAX reports a {name} is not known here; known: {known}")
