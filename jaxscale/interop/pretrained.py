"""Starting from weights that are there already: `load_pretrained`, and `model.init_from` of a run.

A location is a Hugging Face directory, a GGUF file, or a run directory of ours: a path, or a URL (gs://, s3://).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import yaml
from jax.sharding import Mesh

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.keep import Keep
from jaxscale.checkpoint.locate import RUN_FILE, TOKENIZER_FOLDER, checkpoints_below
from jaxscale.checkpoint.places import check_reachable, file_names, open_place
from jaxscale.config.loading import load_config, validate
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.data.tokenizers import FILE_NAME
from jaxscale.errors import UserError
from jaxscale.interop.byte_ranges import open_folder
from jaxscale.interop.gguf_import import open_gguf
from jaxscale.interop.hf_config import meaning
from jaxscale.interop.hf_import import CONFIG_FILE, hf_section, open_hf, tokenizer_files
from jaxscale.interop.open_model import OpenModel, load_params
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, Params, blueprint
from jaxscale.models.families import resolve
from jaxscale.parallel.mesh import auto_plan, make_mesh
from jaxscale.parallel.placement import Placement, place


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters in place. `bind(model, params)` makes the module."""

    section: ModelSection
    model: Blueprint
    placement: Placement
    params: Params


def load_pretrained(
    location: str,
    plan: Plan | None = None,
    mesh: Mesh | None = None,
    *,
    ignore: Collection[str] = (),
) -> Pretrained:
    """The parameters of a location on a mesh, read box by box: no process holds more than its part.

    plan: how to lay them out (default: all devices share each array). mesh: of the plan's axes (default: all devices).
    ignore: keys of config.json to pass over.
    Raises UserError for what cannot be represented, for damaged files, and for a plan that does not fit.
    """
    if _is_run(location):
        section = _section_of(location)
        model = blueprint(model_builder(section))
        placement = _placed(model, plan, mesh)
        return Pretrained(section, model, placement, _of_run(location, model, placement))
    source = _open(location, ignore)
    placement = _placed(source.model, plan, mesh)
    params = load_params(source, placement.shardings(source.model.description))
    return Pretrained(source.section, source.model, placement, params)


def _open(location: str, ignore: Collection[str]) -> OpenModel:
    if location.endswith(".gguf"):
        return open_gguf(Path(location))
    return open_hf(location, ignore=ignore)


def _placed(model: Blueprint, plan: Plan | None, mesh: Mesh | None) -> Placement:
    count = mesh.size if mesh is not None else jax.device_count()
    plan = plan or auto_plan(model.description, count, count)
    return place(plan, mesh or make_mesh(plan), model.description)


def with_pretrained(config: RunConfig) -> RunConfig:
    """A run that starts from `model.init_from`, with what it leaves out: the model's keys, and the tokenizer.

    Raises UserError where there is nothing to start from.
    """
    location = config.model.init_from
    if location is None:
        return config
    model, there = config.model, _section_of(location)
    if model.family is None:
        values = there.model_dump(exclude_unset=True) | model.model_dump(exclude_unset=True)
        model = ModelSection.model_validate(values)
    data, tokenizer = config.data, _tokenizer_of(location)
    if "tokenizer" not in data.model_fields_set and tokenizer is not None:
        data = data.model_copy(update={"tokenizer": tokenizer})
    return config.model_copy(update={"model": model, "data": data})


def initial_params(section: ModelSection, model: Blueprint, placement: Placement) -> Params:
    """The parameters that a run with `init_from` starts from. Raises UserError where they do not fit its model."""
    location = section.init_from
    assert location is not None
    if _is_run(location):
        return _of_run(location, model, placement)
    source = open_hf(location, section=section)
    return load_params(source, placement.shardings(model.description))


def differences(section: ModelSection) -> Iterator[str]:
    """Where a section says otherwise than what it starts from: meant (a longer window), or a mistake worth seeing."""
    assert section.init_from is not None
    before, now = (meaning(resolve(one)) for one in (_section_of(section.init_from), section))
    for key, value in now.items():
        if before.get(key) != value:
            yield f"{key} is {value}; {section.init_from} was trained with {before.get(key)}"


def keep_tokenizer_files(config: RunConfig, run: Path) -> None:
    """What lies beside a tokenizer from `init_from` (chat template, names of tokens): an export needs it."""
    location, folder = config.model.init_from, run / TOKENIZER_FOLDER
    if location is None or not folder.is_dir() or config.data.tokenizer != _tokenizer_of(location):
        return
    for name, content in tokenizer_files(open_folder(config.data.tokenizer)).items():
        if name != FILE_NAME:
            (folder / name).write_bytes(content)


def _section_of(location: str) -> ModelSection:
    """Raises UserError where there is neither a run nor a Hugging Face model."""
    if _is_run(location):
        return _config_of(location).model
    if location.endswith(".gguf"):
        raise UserError(f"make a run of it first: jaxscale import gguf {location} RUN")
    if CONFIG_FILE not in file_names(open_folder(location)):
        raise UserError(
            f"{location} has neither {CONFIG_FILE} (a Hugging Face model) nor {RUN_FILE} (a run)"
        )
    return hf_section(location)


def _tokenizer_of(location: str) -> str | None:
    if _is_run(location):
        folder = open_place(location) / TOKENIZER_FOLDER
        return str(folder) if folder.is_dir() else None
    return location if FILE_NAME in file_names(open_folder(location)) else None


def _is_run(location: str) -> bool:
    place = open_place(location)
    check_reachable(place)
    return (place / RUN_FILE).is_file()


def _config_of(location: str) -> RunConfig:
    file = open_place(location) / RUN_FILE
    if isinstance(file, Path):
        return load_config(file)
    return validate(yaml.safe_load(file.read_bytes()), source=str(file))


def _of_run(location: str, model: Blueprint, placement: Placement) -> Params:
    shardings = placement.shardings(model.description)
    with Checkpointer(checkpoints_below(open_place(location)), Keep()) as checkpoints:
        step = checkpoints.latest_good()
        if step is None:
            raise UserError(f"{location} has no good checkpoint")
        stored = [entry.path for entry in checkpoints.manifest(step)]
        part = "average/" if any(path.startswith("average/") for path in stored) else "params/"
        target = {
            part + path: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[path])
            for path, spec in model.description.items()
        }
        restored = checkpoints.restore(target, step, allow_extra=True, integrity="skip")
    return {path.removeprefix(part): array for path, array in restored.arrays.items()}
