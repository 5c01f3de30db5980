"""Names and moves inside a checkpoint directory.

A checkpoint is the folder `STEP/`, a plain decimal number. Everything else is invisible:
`STEP.ATTEMPT.saving/` is being written, `STEP.replaced/` and `STEP.deleting/` are on their way out.
Only renames make a checkpoint appear or disappear, so a process killed between any two system
calls leaves each step whole or not listed.

Object stores rename nothing. There the folder `STEP/` is written in place, and visible for as long as it has the file
of its checksums, which is written last and deleted first.
"""

import os
import shutil
from pathlib import Path

from jaxscale.checkpoint.places import Place, remove_tree

SAVING, REPLACED, DELETING = ".saving", ".replaced", ".deleting"
ARRAYS_FOLDER = "arrays"
CHECKSUMS_FILE = "checksums.json"


def listed_steps(directory: Place) -> list[int]:
    """Steps with a complete checkpoint, ascending; an absent directory has none."""
    return [step for step in _steps_in(directory) if _is_visible(directory / str(step))]


def staging(directory: Place, step: int, attempt: int) -> Place:
    """Where the checkpoint of `step` is written until it is complete.

    Each attempt of a process has its own: after a failed write TensorStore goes on with the
    others it had begun, and a retry must not find their files in its folder.
    """
    name = f"{step}.{attempt}{SAVING}" if isinstance(directory, Path) else str(step)
    return directory / name


def start_staging(folder: Place) -> None:
    """Clears what killed processes left behind and creates an empty staging folder."""
    directory = folder.parent
    if not isinstance(directory, Path):
        for step in (*_steps_in(directory), int(folder.name)):
            if directory / str(step) == folder or not _is_visible(directory / str(step)):
                remove(directory, step)
        return
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in {SAVING, REPLACED, DELETING} and _is_step(path.name.split(".")[0]):
            # Writes of a failed save may still be landing in it; then the next save clears it.
            shutil.rmtree(path, ignore_errors=True)
    folder.mkdir()


def publish(folder: Place, step: int) -> None:
    """Makes a staged checkpoint visible, in place of an older one of the same step."""
    if not isinstance(folder, Path):
        return  # Its checksums made it so.
    _flush_to_disk(folder)
    directory = folder.parent
    final, replaced = directory / str(step), directory / f"{step}{REPLACED}"
    if final.exists():
        final.rename(replaced)
    folder.rename(final)
    flush(directory)
    if replaced.exists():
        shutil.rmtree(replaced)


def abandon(folder: Place) -> None:
    """Deletes a staging folder, unless it has become a checkpoint."""
    if isinstance(folder, Path) or not _is_visible(folder):
        remove_tree(folder)


def remove(directory: Place, step: int) -> None:
    """Deletes a checkpoint: out of sight at once, then file by file."""
    if isinstance(directory, Path):
        doomed = directory / f"{step}{DELETING}"
        (directory / str(step)).rename(doomed)
        shutil.rmtree(doomed)
        return
    folder = directory / str(step)
    if _is_visible(folder):
        (folder / CHECKSUMS_FILE).unlink()
    remove_tree(folder)


def _steps_in(directory: Place) -> list[int]:
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir())
    return sorted(int(name) for name in names if _is_step(name))


def _is_visible(folder: Place) -> bool:
    return folder.is_dir() if isinstance(folder, Path) else (folder / CHECKSUMS_FILE).exists()


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _flush_to_disk(root: Path) -> None:
    # A rename can reach the disk before the data it names: after a power cut the folder would
    # be there and its files empty.
    for path in (*root.rglob("*"), root):
        flush(path)


def flush(path: Path) -> None:
    """Return when a file, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
