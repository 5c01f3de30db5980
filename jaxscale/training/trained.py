"""A trained model off a run directory: its parameters alone, on the mesh that is there now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.keep import Keep
from jaxscale.checkpoint.locate import checkpoints_of
from jaxscale.config.loading import load_config
from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.config.run import RunConfig
from jaxscale.data.tokenizers import BYTES, Tokenizer, load_tokenizer
from jaxscale.errors import UserError
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, Description, Params, blueprint
from jaxscale.parallel.mesh import auto_plan, make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.outputs import TOKENIZER_FOLDER
from jaxscale.training.stage_order import in_stage_order

_AXIS_OVERRIDES = tuple(f"plan.{axis}=" for axis in MESH_AXES)
_ONE_DEVICE = tuple(f"{axis}1" for axis in _AXIS_OVERRIDES)


@dataclass(frozen=True)
class Trained:
    """A model that can be evaluated and sampled. step: of the checkpoint it comes from."""

    directory: Path
    config: RunConfig
    model: Blueprint
    placement: Placement
    params: Params
    tokenizer: Tokenizer
    step: int


def load_trained(
    directory: Path,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    warn: Callable[[str], None],
) -> Trained:
    """The parameters of a run's newest good checkpoint (or that of `step`); the averaged ones where they were kept.

    Mesh axes in `overrides` (`plan.tensor=2`) lay them out; otherwise all attached devices share them.
    Raises UserError for a directory without a run or without a checkpoint.
    """
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory} is not a run directory: it has no config.yaml")
    asked = any(override.startswith(_AXIS_OVERRIDES) for override in overrides)
    config = load_config(directory / "config.yaml", [*(_ONE_DEVICE if asked else ()), *overrides])
    model = blueprint(model_builder(config.model))
    plan = _plan(config, model.description, asked=asked)
    placement = place(plan, make_mesh(plan, jax.devices()[: plan.num_devices]), model.description)
    folder = checkpoints_of(directory, config.checkpoint.directory)
    with Checkpointer(folder, Keep(last=config.checkpoint.keep_last)) as checkpoints:
        chosen = checkpoints.latest_good(warn=warn) if step is None else step
        if chosen is None:
            raise UserError(f"{directory} has no good checkpoint")
        stored = {entry.path for entry in checkpoints.manifest(chosen)}
        part = "average" if any(path.startswith("average/") for path in stored) else "params"
        restored = checkpoints.restore(_target(model, placement, part), chosen, allow_extra=True)
    saved = {path.removeprefix(f"{part}/"): array for path, array in restored.arrays.items()}
    params = in_stage_order(saved, dict(placement.stored(model.description)), placement)
    tokenizer = load_tokenizer(tokenizer_spec(directory))
    return Trained(directory, config, model, placement, params, tokenizer, chosen)


def _plan(config: RunConfig, description: Description, *, asked: bool) -> Plan:
    """The run's plan on the mesh that was asked for, or on all devices: those of the run may be gone."""
    own = config.plan if isinstance(config.plan, Plan) else Plan()
    count = jax.device_count()
    mesh = own if asked else auto_plan(description, count, count)
    microbatches = max(own.microbatches, 2 * mesh.pipeline if mesh.pipeline > 1 else 1)
    changes = {"microbatches": microbatches, "remat": "none", "stage_layers": []}
    return own.model_copy(update={**mesh.mesh_shape, **changes})


def tokenizer_spec(directory: Path) -> str:
    """What `load_tokenizer` takes for the tokenizer that a run was trained with."""
    folder = directory / TOKENIZER_FOLDER
    return str(folder) if folder.is_dir() else BYTES


def _target(model: Blueprint, placement: Placement, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    shardings = placement.unstaged().shardings(model.description)
    return {
        f"{part}/{path}": jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[path])
        for path, spec in model.description.items()
    }
