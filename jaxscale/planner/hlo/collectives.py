"""Collectives that a compiled program runs: kind, axes, how often, how many bytes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from jaxscale.planner.hlo.execution import Executed
from jaxscale.planner.hlo.groups import Group, group_of
from jaxscale.planner.hlo.text import Array, Computation, Instruction

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_OPCODE = re.compile(rf"({'|'.join(sorted(KINDS, key=len, reverse=True))})(-start)?")
# A TPU program writes an overlapped collective once in each piece of work that it runs beside; one of them starts it.
_TPU_PIECE = "chain_id="
_TPU_START = "AsyncCollectiveStart"
_SLICES = ("dynamic-slice",)
_BETWEEN_SLICES = '"xla_megascale_runtime"'


@dataclass(frozen=True, order=True)
class Collective:
    """All collectives of one kind over the same axes with the same arrays.

    count: runs in a step, loops multiplied; of a pipeline's stages a mean, which need not be whole.
    bytes_each: on one device, the whole array: what all-gather gives, what any other kind takes in (a reduce-scatter's
    array before it is scattered). group: devices that take part.
    Between TPU slices a program only sends: kind `send`, axes ("slices",), a group of which nothing is said (0).
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    arrays: tuple[str, ...]
    bytes_each: int
    count: float

    @property
    def num_bytes(self) -> int:
        """Of all runs."""
        return round(self.bytes_each * self.count)

    @property
    def wire_bytes(self) -> float:
        """What one device sends in all runs by the algorithms that send least: a ring, whose other kinds are its parts.

        Lets a gather that the compiler turned into a ring of permutations be compared with one that it left whole.
        """
        return self.num_bytes * _SENT.get(self.kind, 1.0) * _others(self)


# Times an array's bytes, without the device's own part where there is one (Thakur, Rabenseifner, Gropp 2005).
_SENT = {"all-reduce": 2.0}
_WHOLE = ("collective-permute", "collective-broadcast", "send")


def _others(collective: Collective) -> float:
    return 1.0 if collective.kind in _WHOLE else 1 - 1 / collective.group


def collectives(
    instructions: Iterable[Executed], mesh_shape: Mapping[str, int]
) -> tuple[Collective, ...]:
    """What a program sends, the most bytes first. An asynchronous pair counts once; groups of one device not at all."""
    counts: dict[tuple[str, tuple[str, ...], int, tuple[str, ...], int], Fraction] = {}
    for each in instructions:
        kind = _kind(each.computation, each.instruction)
        if kind is None:
            continue
        is_send = kind == "send"
        group = Group(("slices",), 0) if is_send else group_of(each.instruction, mesh_shape)
        if group.size == 1:
            continue
        taken = each.computation.operand_arrays(each.instruction)
        factor = group.size if kind == "all-gather" else 1
        size = factor * sum(array.num_bytes for array in taken)
        key = kind, group.axes, group.size, _words(taken), size
        counts[key] = counts.get(key, Fraction(0)) + each.times
    found = (Collective(*key, plain(count)) for key, count in counts.items())
    return tuple(sorted(found, key=lambda each: (-each.num_bytes, each)))


def by_axes(found: Iterable[Collective]) -> tuple[Collective, ...]:
    """One entry for each kind, axes and group: counts and bytes added, `arrays` empty, bytes_each the mean."""
    sums: dict[tuple[str, tuple[str, ...], int], list[float]] = {}
    for each in found:
        total = sums.setdefault((each.kind, each.axes, each.group), [0, 0])
        total[0] += each.count
        total[1] += each.num_bytes
    merged = (
        Collective(*key, arrays=(), bytes_each=round(num_bytes / count), count=count)
        for key, (count, num_bytes) in sums.items()
    )
    return tuple(sorted(merged, key=lambda each: (-each.num_bytes, each)))


def plain(number: Fraction) -> float:
    """Whole where it is."""
    return number.numerator if number.denominator == 1 else float(number)


def _kind(computation: Computation, instruction: Instruction) -> str | None:
    if instruction.opcode == "send" and _BETWEEN_SLICES in instruction.attributes:
        return "send"
    found = _OPCODE.fullmatch(instruction.opcode)
    if found is None or (
        _TPU_PIECE in instruction.attributes and not _starts(computation, instruction)
    ):
        return None
    if found[1] == "all-reduce" and _is_scattered(computation, instruction):
        return "reduce-scatter"
    return found[1]


def _starts(computation: Computation, collective: Instruction) -> bool:
    return any(_TPU_START in user.attributes for user in _users(computation, collective))


def _is_scattered(computation: Computation, reduction: Instruction) -> bool:
    """Whether a TPU fusion keeps nothing of an all-reduce but each device's slice: there that is a reduce-scatter."""
    if "all-reduce-scatter" not in computation.name:
        return False
    kept: list[Instruction] = []
    for user in _users(computation, reduction):
        through = user.opcode in {"get-tuple-element", "bitcast"}
        kept.extend(_users(computation, user) if through else [user])
    return bool(kept) and all(user.opcode in _SLICES for user in kept)


def _users(computation: Computation, used: Instruction) -> list[Instruction]:
    return [each for each in computation.instructions.values() if used.name in each.operands]


def _words(arrays: tuple[Array, ...]) -> tuple[str, ...]:
    return tuple(f"{array.dtype}[{','.join(map(str, array.dims))}]" for array in arrays)
