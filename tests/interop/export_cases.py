"""Runs to export, without training them: random parameters under a real placement, saved as the trainer saves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.config.text import to_yaml
from jaxscale.data.tokenizers import BYTES, Tokenizer, load_tokenizer
from jaxscale.models.build import model_builder
from jaxscale.models.description import Params, blueprint
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.training.stage_order import in_model_order, stored_params

STEP = 7
ONE_DEVICE = Plan()

Arrays = dict[str, np.ndarray]


def random_arrays(section: ModelSection, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    description = blueprint(model_builder(section)).description
    return {
        path: 0.2 * generator.standard_normal(spec.shape, np.float32)
        for path, spec in description.items()
    }


def save_run(
    run: Path,
    section: ModelSection,
    arrays: Mapping[str, np.ndarray],
    *,
    plan: Plan = ONE_DEVICE,
    part: str = "params",
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A run directory with one checkpoint of these parameters, laid out by a plan, beside some optimizer state."""
    placed = on_mesh(section, arrays, plan)
    state = {f"{part}/{path}": array for path, array in placed.items()}
    state |= {f"optimizer/adam/mu/{path}": jnp.zeros_like(array) for path, array in placed.items()}
    if part != "params":
        state |= {f"params/{path}": jnp.zeros_like(array) for path, array in placed.items()}
    state["step"] = jnp.int32(STEP)
    with Checkpointer(run / "checkpoints", Keep()) as checkpoints:
        checkpoints.save(STEP, state, metadata(section, plan, tokenizer), blocking=True)
    (run / "config.yaml").write_text(to_yaml(config(section)))
    if tokenizer is not None:
        (run / "tokenizer").mkdir()
        tokenizer.save(run / "tokenizer")
    return run


def on_mesh(section: ModelSection, arrays: Mapping[str, np.ndarray], plan: Plan) -> Params:
    """Parameters as a run of this plan holds them (a pipeline: in the order of its stages), as it hands them out."""
    description = blueprint(model_builder(section)).description
    placement = place(plan, make_mesh(plan, jax.devices()[: plan.num_devices]), description)
    fresh = {path: jnp.asarray(array) for path, array in arrays.items()}
    specs = dict(placement.stored(description))
    stored = jax.device_put(
        stored_params(fresh, description, placement), placement.shardings(specs)
    )
    handed_out: Params = in_model_order(stored, specs, placement)
    return handed_out


def config(section: ModelSection) -> RunConfig:
    training: Any = {"steps": 10, "global_batch": 4}
    return RunConfig(
        name="tiny", model=section, data={"train": "/secret/books.txt"}, training=training
    )


def metadata(section: ModelSection, plan: Plan, tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "config": config(section).model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "data": {"tokenizer": (tokenizer or load_tokenizer(BYTES)).fingerprint},
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


def tensors_of(folder: Path) -> Arrays:
    """All tensors of an export, as the safetensors library reads them."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
            found |= {name: opened.get_tensor(name) for name in names}
    return found


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.safetensors.index.json").read_text())
