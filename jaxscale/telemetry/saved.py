"""Which checkpoint of a run is the newest, for those who watch it: without JAX, and without waiting for ever."""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = "checkpoints"
_PATIENCE = 20


@dataclass(frozen=True)
class Saved:
    """time: Unix seconds when the checkpoint was complete."""

    step: int
    time: float


class Unseen(Exception):
    """A place of checkpoints that cannot be looked into from here; says where and why."""


def newest_checkpoint(run: Path) -> Saved | None:
    """The newest complete checkpoint, where the configuration that lies in the run says that they are kept.

    Raises Unseen for an object store that does not answer.
    """
    place = place_of(run)
    if "://" in place:
        return _in_store(run, place)
    return newest_inside(run / place)


def newest_inside(folder: Path) -> Saved | None:
    """The same of a directory: a checkpoint's folder has its step for a name (`checkpoint.layout`, which needs JAX)."""
    if not folder.is_dir():
        return None
    steps = [int(path.name) for path in folder.iterdir() if _is_step(path)]
    if not steps:
        return None
    with contextlib.suppress(FileNotFoundError):  # Pruned since.
        return Saved(max(steps), (folder / str(max(steps))).stat().st_mtime)
    return None


def place_of(run: Path) -> str:
    """`checkpoint.directory` of a run; runs of which nothing is known keep them where it is usual."""
    file = run / "config.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return FOLDER
    section = values.get("checkpoint") if isinstance(values, dict) else None
    given = section.get("directory") if isinstance(section, dict) else None
    return given.removeprefix("file://") if isinstance(given, str) and given else FOLDER


def _in_store(run: Path, place: str) -> Saved | None:
    words = [sys.executable, "-m", "jaxscale.checkpoint.newest", str(run), str(_PATIENCE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        late = f"no answer within {_PATIENCE} s"
        raise Unseen(f"{place}: {late if done.returncode < 0 or not said else said[-1]}")
    found = json.loads(done.stdout)
    return None if found is None else Saved(found["step"], found["time"])


def _is_step(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdecimal() and str(int(name)) == name and path.is_dir()
