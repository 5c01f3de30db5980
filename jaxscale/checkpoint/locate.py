"""Which checkpoint a location on the command line means."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from jaxscale.checkpoint import layout
from jaxscale.checkpoint.manifest import METADATA_FILE
from jaxscale.checkpoint.places import Place, check_reachable, copy_file, files_below, open_place
from jaxscale.errors import UserError

CHECKPOINTS_FOLDER = "checkpoints"
RUN_FILE = "config.yaml"
TOKENIZER_FOLDER = "tokenizer"
# What of a run its copy needs to be evaluated, sampled and exported, beside its configuration and its tokenizer.
_RUN_FILES = ("plan.yaml", "environment.json")


@dataclass(frozen=True)
class Located:
    """One checkpoint. run: the directory of the run that it belongs to, where there is one."""

    directory: Place
    step: int
    run: Place | None

    @property
    def checkpoint(self) -> Place:
        return self.directory / str(self.step)


def copy_run_files(run: Place, out: Place) -> None:
    """Make a run of the place of a copied checkpoint; files that are there already stay."""
    names = [name for name in _RUN_FILES if (run / name).exists()]
    names += [f"{TOKENIZER_FOLDER}/{name}" for name in files_below(run / TOKENIZER_FOLDER)]
    for name in names:
        if not (out / name).exists():
            copy_file(run / name, out / name)
    if not (out / RUN_FILE).exists():
        copy_file(run / RUN_FILE, out / RUN_FILE)
        if checkpoints_below(out) != out / CHECKPOINTS_FOLDER:
            _forget_directory(out / RUN_FILE)


def _forget_directory(file: Place) -> None:
    """The checkpoints of a copy are beside its configuration, wherever those of the run are."""
    values = yaml.safe_load(file.read_bytes())
    del values["checkpoint"]["directory"]
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def checkpoints_of(run: Place, directory: str = CHECKPOINTS_FOLDER) -> Place:
    """Where a run keeps its checkpoints. directory: `checkpoint.directory` of its configuration."""
    place = open_place(directory)
    return run / directory if isinstance(place, Path) and not place.is_absolute() else place


def checkpoints_below(run: Place) -> Place:
    """Where the run in a directory keeps its checkpoints, by the configuration that lies there."""
    file = run / RUN_FILE
    values = yaml.safe_load(file.read_bytes()) if file.is_file() else None
    section = values.get("checkpoint") if isinstance(values, dict) else None
    given = section.get("directory") if isinstance(section, dict) else None
    return checkpoints_of(run, given or CHECKPOINTS_FOLDER)


def find_checkpoints(location: str | Place) -> Place:
    """The folder of checkpoints that a run directory, that folder, or one of its checkpoints means.

    Raises UserError where there is none.
    """
    path = open_place(location).absolute()
    check_reachable(path)
    if not path.is_dir():
        raise UserError(f"there is no directory {path}")
    if (path / METADATA_FILE).is_file():
        return path.parent
    inner = checkpoints_below(path)
    directory = inner if inner.is_dir() else path
    if not layout.listed_steps(directory):
        raise UserError(
            f"there is no checkpoint in {directory}: give a run directory, its {CHECKPOINTS_FOLDER} folder, or one "
            f"checkpoint (the folder named by its step)"
        )
    return directory


def locate(location: str | Place, step: int | None = None) -> Located:
    """The checkpoint at a path or URL; of a run or a folder of checkpoints that of `step`, or the newest.

    Raises UserError where there is none.
    """
    path = open_place(location).absolute()
    directory = find_checkpoints(path)
    steps = layout.listed_steps(directory)
    if path.parent == directory:
        if step is not None and str(step) != path.name:
            raise UserError(f"{path} is the checkpoint of one step: leave out --step {step}")
        if not path.name.isdecimal() or int(path.name) not in steps:
            raise UserError(f"{path} is not a finished checkpoint: it is not named by its step")
        step = int(path.name)
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UserError(f"no checkpoint {chosen} in {directory}; there are {steps}")
    return Located(directory, chosen, _run_of(directory, path))


def _run_of(directory: Place, path: Place) -> Place | None:
    """What was named, or what the folder of checkpoints lies in."""
    candidates = [path, directory.parent] if directory.name == CHECKPOINTS_FOLDER else [path]
    return next((run for run in candidates if (run / RUN_FILE).is_file()), None)
