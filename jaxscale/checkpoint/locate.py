"""Which checkpoint a path on the command line means."""

from dataclasses import dataclass
from pathlib import Path

from jaxscale.checkpoint import layout
from jaxscale.checkpoint.manifest import METADATA_FILE
from jaxscale.errors import UserError

CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Located:
    """One checkpoint. run: the directory of the run that it belongs to, where there is one."""

    directory: Path
    step: int
    run: Path | None

    @property
    def checkpoint(self) -> Path:
        return self.directory / str(self.step)


def find_checkpoints(path: Path) -> Path:
    """The folder of checkpoints that a run directory, that folder, or one of its checkpoints means.

    Raises UserError where there is none.
    """
    path = path.absolute()
    if not path.is_dir():
        raise UserError(f"there is no directory {path}")
    if (path / METADATA_FILE).is_file():
        return path.parent
    inner = path / CHECKPOINTS_FOLDER
    directory = inner if inner.is_dir() else path
    if not layout.listed_steps(directory):
        raise UserError(
            f"there is no checkpoint in {directory}: give a run directory, its {CHECKPOINTS_FOLDER} folder, or one "
            f"checkpoint (the folder named by its step)"
        )
    return directory


def locate(path: Path, step: int | None = None) -> Located:
    """The checkpoint at `path`; of a run or a folder of checkpoints that of `step`, or the newest.

    Raises UserError where there is none.
    """
    directory = find_checkpoints(path)
    steps = layout.listed_steps(directory)
    path = path.absolute()
    if path.parent == directory:
        if step is not None and str(step) != path.name:
            raise UserError(f"{path} is the checkpoint of one step: leave out --step {step}")
        if not path.name.isdecimal() or int(path.name) not in steps:
            raise UserError(f"{path} is not a finished checkpoint: it is not named by its step")
        step = int(path.name)
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UserError(f"no checkpoint {chosen} in {directory}; there are {steps}")
    return Located(directory, chosen, _run_of(directory))


def _run_of(directory: Path) -> Path | None:
    run = directory.parent
    inside = directory.name == CHECKPOINTS_FOLDER and (run / "config.yaml").is_file()
    return run if inside else None
