"""The file of cases, as typed data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxscale.errors import UserError

Json = Mapping[str, Any]


class Unsupported(Exception):
    """A case that cannot be evaluated; the message is the reason, and is printed."""


# What reading a field of an unforeseen form raises. One odd case must not end the evaluation of all others: it is
# listed with the error as its reason, and counts as a miss.
ODD = (Unsupported, UserError, ArithmeticError, LookupError, TypeError, ValueError, StopIteration)


def reason_of(error: Exception) -> str:
    return (
        str(error) if isinstance(error, Unsupported | UserError) else f"not understood: {error!r}"
    )


@dataclass(frozen=True)
class Case:
    """id: `prefix-...`, the prefix names the source. given, expected, tolerance: as printed in the file."""

    id: str
    kind: str
    given: Json
    expected: Json
    tolerance: Json
    source: str = ""
    note: str = ""
    use: str = ""
    flops_convention: str = ""

    @property
    def prefix(self) -> str:
        return self.id.split("-")[0]


@dataclass(frozen=True)
class CaseFile:
    """models, hardware: the blocks that `given.model` and `given.hw` point into."""

    cases: tuple[Case, ...]
    models: Json
    hardware: Json


def load_cases(path: Path) -> CaseFile:
    document = json.loads(path.read_text())
    return CaseFile(
        cases=tuple(_case(entry) for entry in document["cases"]),
        models=document.get("models", {}),
        hardware=document.get("hardware", {}),
    )


def _case(entry: Json) -> Case:
    return Case(
        id=entry["id"],
        kind=entry["kind"],
        given=entry.get("given", {}),
        expected=entry.get("expected", {}),
        tolerance=entry.get("tolerance") or {},
        source=entry.get("source", ""),
        note=entry.get("note") or "",
        use=entry.get("use") or "",
        flops_convention=entry.get("flops_convention") or "",
    )
