"""What an export has finished: one line a file and process, so that the next run goes on from there.

It lives in `.export/` inside the target until the export is complete:

    .export/plan.json          what is being exported; another export is refused
    .export/PROCESS.jsonl      {"file": ..., "pieces": {offset: crc32}}, a line when they are on the disk and read back
"""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxscale.checkpoint.places import Place
from jaxscale.errors import UserError

FOLDER = ".export"
PLAN_FILE = "plan.json"
_SHOWN = 3
# By file, then by offset in the file: CRC-32 of the piece that begins there.
Done = dict[str, dict[int, int]]


@dataclass(frozen=True)
class Journal:
    """The journal of one process. Others write files of their own beside it."""

    target: Path
    process: int

    @property
    def folder(self) -> Path:
        return self.target / FOLDER

    def add(self, file: str, pieces: Mapping[int, int]) -> None:
        """Note that pieces of a file are on the disk."""
        line = json.dumps({"file": file, "pieces": {str(at): crc for at, crc in pieces.items()}})
        with (self.folder / f"{self.process}.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(line + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def done(self) -> Done:
        """What all processes have noted; a line that a killed process left unfinished is passed over.

        Less than that where another process finishes the export meanwhile, and forgets its journals.
        """
        found: Done = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in _lines(path):
                for file, pieces in _parsed(line).items():
                    found.setdefault(file, {}).update(pieces)
        return found

    def forget(self) -> None:
        """The export is complete. Other processes may be doing the same."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_journal(target: Path, process: int, fingerprint: str) -> Journal:
    """The journal of an export, begun or gone on with.

    Raises UserError if the target holds something else.
    """
    journal = Journal(target, process)
    plan = journal.folder / PLAN_FILE
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a directory to export into")
    if not plan.is_file() and target.is_dir() and any(_others(target)):
        raise not_empty(target, _others(target))
    journal.folder.mkdir(parents=True, exist_ok=True)
    if plan.is_file():
        check_same_export(target, json.loads(plan.read_bytes()), fingerprint)
    write_atomically(plan, json.dumps({"fingerprint": fingerprint}) + "\n")
    return journal


def not_empty(target: Place, names: Collection[str]) -> UserError:
    """What to say of a target that holds something else."""
    shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return UserError(f"{target} is not empty ({shown}): name a new or an empty directory")


def check_same_export(target: Place, plan: Mapping[str, str], fingerprint: str) -> None:
    """Raises UserError if what was begun in the target is another export."""
    if plan.get("fingerprint") != fingerprint:
        raise UserError(
            f"{target} holds another export that is not finished (of another checkpoint, or with other options): go on "
            "with that one, or remove the directory"
        )


def write_atomically(path: Path, text: str) -> None:
    """The whole file or none; several processes may write the same."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _others(target: Path) -> set[str]:
    """What there is beside the journal's own folder, which another process may just have made."""
    return {path.name for path in target.iterdir()} - {FOLDER}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _parsed(line: str) -> Done:
    """The file and pieces of a line; nothing where it is not whole."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return {entry["file"]: {int(at): crc for at, crc in entry["pieces"].items()}}
