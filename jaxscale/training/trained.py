"""A trained model off a run directory: its parameters alone, on the mesh that is there now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.keep import Keep
from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.data.tokenizers import BYTES, Tokenizer, load_tokenizer
from jaxscale.errors import UserError
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, Description, Params, blueprint
from jaxscale.parallel.mesh import auto_plan, make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.outputs import TOKENIZER_FOLDER


@dataclass(frozen=True)
class Trained:
    """A model that can be evaluated and sampled. step: of the checkpoint it comes from."""

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

    A plan by hand in `overrides` lays them out; otherwise all attached devices share them.
    Raises UserError for a directory without a run or without a checkpoint.
    """
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory} is not a run directory: it has no config.yaml")
    config = load_config(directory / "config.yaml", overrides)
    model = blueprint(model_builder(config.model))
    plan = _plan(config, model.description, overrides)
    placement = place(plan, make_mesh(plan, jax.devices()[: plan.num_devices]), model.description)
    with Checkpointer(
        directory / "checkpoints", Keep(last=config.checkpoint.keep_last)
    ) as checkpoints:
        chosen = checkpoints.latest_good(warn=warn) if step is None else step
        if chosen is None:
            raise UserError(f"{directory} has no good checkpoint")
        stored = {entry.path for entry in checkpoints.manifest(chosen)}
        part = "average" if any(path.startswith("average/") for path in stored) else "params"
        restored = checkpoints.restore(_target(model, placement, part), chosen, allow_extra=True)
    params = {path.removeprefix(f"{part}/"): array for path, array in restored.arrays.items()}
    return Trained(config, model, placement, params, run_tokenizer(directory), chosen)


def _plan(config: RunConfig, description: Description, overrides: Sequence[str]) -> Plan:
    """The plan asked for on the command line; the run's own devices may be gone."""
    asked = any(override.startswith("plan.") for override in overrides)
    if asked and isinstance(config.plan, Plan):
        return config.plan.model_copy(update={"microbatches": 1, "remat": "none"})
    precision = config.plan.precision if isinstance(config.plan, Plan) else "auto"
    whole = auto_plan(description, jax.device_count(), jax.device_count())
    return whole.model_copy(update={"precision": precision})


def run_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from the run directory."""
    folder = directory / TOKENIZER_FOLDER
    return load_tokenizer(str(folder) if folder.is_dir() else BYTES)


def _target(model: Blueprint, placement: Placement, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    shardings = placement.shardings(model.description)
    return {
        f"{part}/{path}": jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[path])
        for path, spec in model.description.items()
    }
