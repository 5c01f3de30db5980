"""The compiler's word that a program does not fit a device, in words for the person who asked."""

import re
from dataclasses import dataclass

from jaxscale.errors import UserError

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"(-?[\d.]+)([BKMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} \w+")
_REQUIRED = re.compile(rf"required for [\w ]+ \({_SIZE}\) exceeds available \w+ \({_SIZE}\)")
_ALLOCATION = re.compile(
    rf"Size: {_SIZE}\s+(?:Operator: op_name=\"(?P<operator>[^\"]*)\".*\s+)?Shape: (?P<shape>\S+)"
)
_SHOWN = 5


@dataclass(frozen=True)
class Allocation:
    """operator: the compiler's name of what makes the array (empty: an argument). shape: HLO's, without layout."""

    num_bytes: int
    shape: str
    operator: str

    def __str__(self) -> str:
        origin = _plain(self.operator) or "an argument"
        return f"{_gib(self.num_bytes)} {self.shape} ({origin})"


class DoesNotFit(UserError):
    """A program that takes more memory than a device has. Bytes of one device.

    needed: all of it; where the compiler gave up before it had counted the rest (`is_partial`), temporaries alone.
    largest: the largest arrays, where the compiler lists them. text: what the compiler said.
    """

    def __init__(
        self,
        needed: int,
        available: int,
        *,
        parts: str = "",
        largest: tuple[Allocation, ...] = (),
        is_partial: bool = False,
        text: str = "",
    ) -> None:
        self.needed, self.available = needed, available
        self.largest, self.is_partial, self.text = largest, is_partial, text
        what = "its temporaries alone need" if is_partial else "it needs"
        over = f"{_gib(needed - available)} too much"
        detail = f" ({parts})" if parts else ""
        listed = "".join(f"\n  {allocation}" for allocation in largest[:_SHOWN])
        super().__init__(
            f"the compiled step does not fit: {what} {_gib(needed)} of the {_gib(available)} that a device gives "
            f"a program, {over}{detail}{'; the largest arrays:' if listed else ''}{listed}"
        )


def read_refusal(message: str) -> DoesNotFit | None:
    """What a TPU compiler's message says when memory runs out, or None for any other message."""
    used, required = _USED.search(message), _REQUIRED.search(message)
    found = used or required
    if found is None:
        return None
    return DoesNotFit(
        _bytes(found[1], found[2]),
        _bytes(found[3], found[4]),
        largest=_largest(message),
        is_partial=used is None,
        text=message,
    )


def _largest(message: str) -> tuple[Allocation, ...]:
    found = (
        Allocation(
            _bytes(each[1], each[2]), each["shape"].partition("{")[0], each["operator"] or ""
        )
        for each in _ALLOCATION.finditer(message)
    )
    return tuple(sorted(found, key=lambda each: -each.num_bytes))


def _plain(operator: str) -> str:
    """`jit(step)/transpose(jvp())/while/body/dot_general` without what JAX's own transformations add."""
    backward = "backward " if "transpose(" in operator else ""
    parts = operator.rpartition("/")[2]
    return f"{backward}{parts}" if parts else ""


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
