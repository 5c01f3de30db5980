"""An imported model as a run directory: what `generate`, `eval` and `train` take, streamed to disk."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxscale.checkpoint.locate import CHECKPOINTS_FOLDER, RUN_FILE, TOKENIZER_FOLDER
from jaxscale.checkpoint.manifest import ArrayEntry, Manifest
from jaxscale.checkpoint.places import Place, check_reachable, open_place, remove_tree
from jaxscale.config.data_section import DataSection
from jaxscale.config.optimizer_section import OptimizerSection, ScheduleSection
from jaxscale.config.run import RunConfig
from jaxscale.config.run_sections import TrainingSection
from jaxscale.config.text import to_yaml
from jaxscale.data.tokenizers import FILE_NAME, load_tokenizer
from jaxscale.errors import UserError
from jaxscale.interop.open_model import OpenModel
from jaxscale.interop.param_stream import PARAMS, Progress, write_params
from jaxscale.models.description import ParamSpec
from jaxscale.telemetry.environment import describe_environment

_ROW_TOKENS = 1024


@dataclass(frozen=True)
class Imported:
    """out: the run directory. num_bytes: of the parameters as they are stored now."""

    out: str
    config: RunConfig
    num_parameters: int
    num_bytes: int


def import_model(
    source: OpenModel, out: Place | str, progress: Progress = lambda _: None
) -> Imported:
    """Write a run directory (`out`: a path or a URL) with a checkpoint of step 0 that holds the parameters alone.

    It appears when it is complete. Holds a few blocks of 16 MB at a time, whatever the model's size.
    Raises UserError if `out` is there and not empty, if the model brings no tokenizer.json, or if a file is damaged.
    """
    place = open_place(out)
    _check_target(place)
    files = source.tokenizer_files()
    if FILE_NAME not in files:
        raise UserError(_no_tokenizer(source))
    with _unfinished(place) as run:
        _write_tokenizer(files, run / TOKENIZER_FOLDER)
        config = _starting_config(source, place)
        manifest = _manifest(source, config, run / TOKENIZER_FOLDER)
        write_params(source, manifest, run / CHECKPOINTS_FOLDER, progress)
        (run / RUN_FILE).write_text(to_yaml(config), encoding="utf-8")
    count = sum(spec.size for spec in source.model.description.values())
    return Imported(str(place), config, count, manifest.bytes)


@contextmanager
def _unfinished(out: Place) -> Iterator[Place]:
    """Where a run is written: on a disk a hidden directory that is renamed; in a store its place, emptied on failure.

    What is there without config.yaml, which comes last, is no run.
    """
    run = out.absolute().with_name(f".{out.name}.importing") if isinstance(out, Path) else out
    remove_tree(run)
    try:
        yield run
        if isinstance(run, Path) and isinstance(out, Path):
            out.parent.mkdir(parents=True, exist_ok=True)
            run.rename(out)
    except BaseException:
        remove_tree(run)
        raise


def _manifest(source: OpenModel, config: RunConfig, tokenizer: Place) -> Manifest:
    entries = (_entry(path, spec) for path, spec in sorted(source.model.description.items()))
    metadata = {
        "step": 0,
        "config": config.model_dump(mode="json"),
        "data": {"tokenizer": load_tokenizer(str(tokenizer)).fingerprint},
        "imported": dict(source.facts),
        "environment": describe_environment(),
    }
    return Manifest(0, None, None, tuple(entries), metadata)


def _entry(path: str, spec: ParamSpec) -> ArrayEntry:
    return ArrayEntry(PARAMS + path, spec.shape, spec.dtype.name, spec.num_bytes)


def _starting_config(source: OpenModel, out: Place) -> RunConfig:
    """What fine-tuning may start from; text, steps and rates are the user's to change."""
    longest = source.section.max_positions or _ROW_TOKENS
    optimizer = OptimizerSection(learning_rate=2e-5, weight_decay=0.0)
    schedule = ScheduleSection(name="cosine", warmup_steps=10)
    return RunConfig(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", out.name).lstrip("._-") or "imported",
        model=source.section.model_copy(update={"init_from": str(out.absolute())}),
        data=DataSection(
            tokenizer=str(out.absolute() / TOKENIZER_FOLDER),
            sequence_length=min(longest, _ROW_TOKENS),
        ),
        training=TrainingSection(steps=100, global_batch=8, optimizer=optimizer, schedule=schedule),
    )


def _write_tokenizer(files: Mapping[str, bytes], folder: Place) -> None:
    if isinstance(folder, Path):
        folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _check_target(out: Place) -> None:
    check_reachable(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{out} {what}: name a directory that is not there yet")


def _no_tokenizer(source: OpenModel) -> str:
    place = source.facts["from"]
    return (
        f"{place} has no {FILE_NAME}, the one form of a tokenizer that jaxscale reads. transformers makes it of the "
        f"older ones: python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{place}')"
        f".save_pretrained('{place}')\""
    )
