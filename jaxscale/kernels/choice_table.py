"""Choices of a traced program as a table that a person reads, or as data."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from jaxscale.kernels.choice import Choice

# How reasons begin that are another platform: true, and of no interest where there is no such device.
_ELSEWHERE = ("it needs a TPU", "it needs an NVIDIA GPU", "it is a TPU kernel")


def choice_table(choices: Sequence[Choice]) -> str:
    """One line an op, implementation and reason, with the number of distinct calls. No lines for no choices."""
    counts = Counter(_line(choice) for choice in distinct(choices))
    rows = [(op, name, f"{count} calls", why) for (op, name, why), count in sorted(counts.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


def choice_data(choices: Iterable[Choice]) -> list[dict[str, Any]]:
    """Every distinct choice, for JSON."""
    return [asdict(choice) for choice in distinct(choices)]


def distinct(choices: Iterable[Choice]) -> list[Choice]:
    """Without repetitions: a call is traced once for its value and again for its gradient."""
    found: dict[tuple[str, str, str], Choice] = {}
    for choice in choices:
        found.setdefault((choice.op, choice.call, choice.name), choice)
    return list(found.values())


def _line(choice: Choice) -> tuple[str, str, str]:
    reasons = [
        f"{name}: {_without_sizes(reason)}"
        for name, reason in choice.declined.items()
        if not reason.startswith(_ELSEWHERE)
    ]
    return choice.op, choice.name, "; ".join([_without_sizes(choice.why), *reasons])


def _without_sizes(reason: str) -> str:
    """A reason as it is for all calls: sizes stand in brackets behind it."""
    return reason.split(" (", maxsplit=1)[0]
