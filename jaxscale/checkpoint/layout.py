"""Names and moves inside a checkpoint directory.

A checkpoint is the folder `STEP/`, a plain decimal number. Everything else is invisible:
`STEP.ATTEMPT.saving/` is being written, `STEP.replaced/` and `STEP.deleting/` are on their way out.
Only renames make a checkpoint appear or disappear, so a process killed between any two system
calls leaves each step whole or not listed.
"""

import os
import shutil
from pathlib import Path

SAVING, REPLACED, DELETING = ".saving", ".replaced", ".deleting"


def listed_steps(directory: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending; an absent directory has none."""
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if _is_step(name))


def staging(directory: Path, step: int, attempt: int) -> Path:
    """Where the checkpoint of `step` is written until it is complete.

    Each attempt of a process has its own: after a failed write TensorStore goes on with the
    others it had begun, and a retry must not find their files in its folder.
    """
    return directory / f"{step}.{attempt}{SAVING}"


def start_staging(folder: Path) -> None:
    """Clears what killed processes left behind and creates an empty staging folder."""
    directory = folder.parent
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in {SAVING, REPLACED, DELETING} and _is_step(path.name.split(".")[0]):
            # Writes of a failed save may still be landing in it; then the next save clears it.
            shutil.rmtree(path, ignore_errors=True)
    folder.mkdir()


def publish(folder: Path, step: int) -> None:
    """Makes a staged checkpoint visible, in place of an older one of the same step."""
    _flush_to_disk(folder)
    directory = folder.parent
    final, replaced = directory / str(step), directory / f"{step}{REPLACED}"
    if final.exists():
        final.rename(replaced)
    folder.rename(final)
    _flush_entry(directory)
    if replaced.exists():
        shutil.rmtree(replaced)


def remove(directory: Path, step: int) -> None:
    """Deletes a checkpoint: out of sight in one rename, then file by file."""
    doomed = directory / f"{step}{DELETING}"
    (directory / str(step)).rename(doomed)
    shutil.rmtree(doomed)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _flush_to_disk(root: Path) -> None:
    # A rename can reach the disk before the data it names: after a power cut the folder would
    # be there and its files empty.
    for path in (*root.rglob("*"), root):
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
