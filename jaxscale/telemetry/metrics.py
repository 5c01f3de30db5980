"""The run's own record of its metrics: `metrics.jsonl`, one JSON object a line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxscale.errors import UserError

Scalar = float | int | str | None


class MetricsLog:
    """Appends records to a file that survives crashes and is valid JSON whatever the loss does.

    Every record has a `step`. NaN and infinities, which JSON lacks, are written as null and named under
    `nonfinite`. A line that a crash left half written is cut off when the log is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Scalar]) -> None:
        """Append one record and hand it to the operating system, so that killing us cannot lose it."""
        self._file.write(_to_line(record))
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drop the records of steps after `step`: a run resumed from `step` will log them again.

        Atomic: a crash meanwhile leaves either the old file or the new one.
        """
        self._file.close()
        kept = [record for record in read(self.path) if record["step"] <= step]
        _replace_lines(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order; an absent file has none, a torn last line is left out.

    Raises UserError for any other line that is not a JSON object with a step.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_from_line(line, path, number) for number, line in enumerate(lines, start=1) if line]


def _to_line(record: Mapping[str, Scalar]) -> str:
    nonfinite = [k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
    valid: dict[str, Any] = {k: None if k in nonfinite else v for k, v in record.items()}
    if nonfinite:
        valid["nonfinite"] = nonfinite
    return json.dumps(valid, allow_nan=False) + "\n"


def _from_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not valid JSON ({error.msg}). "
            "Remove the line to go on without that record."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise UserError(
            f"{path}, line {number}: a metrics record needs an integer step: {line:.80}"
        )
    return record


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _replace_lines(path: Path, records: list[dict[str, Any]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
