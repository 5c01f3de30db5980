"""Optimized HLO text as data: computations, their instructions, shapes and attributes.

Reads what `jax.stages.Compiled.as_text()` prints for CPU, TPU and CUDA (JAX 0.10 to 0.12). Layouts are dropped: what is
asked of a program here is what it computes and sends, not how arrays lie in memory.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
# Name, result, opcode. In a result no blank stands before a word with a parenthesis: the first such word is the opcode.
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.-]+)")
_BITS = re.compile(r"^[a-z]+(\d+)")
_WITHOUT_DATA = ("token", "opaque")


@dataclass(frozen=True)
class Array:
    """dtype: as HLO names it (`bf16`, `f32`, `s32`, `pred`)."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Without padding; dtypes of less than a byte are packed."""
        return math.ceil(self.size * _bits(self.dtype) / 8)


@dataclass(frozen=True)
class Instruction:
    """results: the arrays of the result, those of nested tuples in one row. arguments: text between the parentheses."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def called(self, role: str) -> str | None:
        """The computation named by an attribute: `calls`, `to_apply`, `body`, `condition`."""
        return self.attribute(rf"\b{role}=%?([\w.-]+)")


@dataclass(frozen=True)
class Computation:
    """instructions: in their order, by name."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(found for found in self.instructions.values() if found.is_root)

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        for name in instruction.operands:
            yield self.instructions[name]

    def operand_arrays(self, instruction: Instruction) -> tuple[Array, ...]:
        """All arrays that an instruction reads."""
        return tuple(array for operand in self.operands(instruction) for array in operand.results)


@dataclass(frozen=True)
class Module:
    """A program. `entry` is the computation that runs first."""

    entry: Computation
    computations: Mapping[str, Computation]


def parse_module(text: str) -> Module:
    """Raises ValueError for text that has no entry computation."""
    computations: dict[str, Computation] = {}
    entry = ""
    for name, is_entry, lines in _blocks(text):
        found = [instruction for line in lines if (instruction := _instruction(line))]
        computations[name] = Computation(name, {each.name: each for each in found})
        entry = name if is_entry else entry
    if not entry:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return Module(computations[entry], computations)


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a printed shape, such as `(f32[2,3]{1,0}, s32[])`."""
    return tuple(
        Array(dtype, tuple(int(dim.lstrip("<=")) for dim in dims.split(",") if dim))
        for dtype, dims in _ARRAY.findall(shape)
        if dtype not in _WITHOUT_DATA
    )


def _bits(dtype: str) -> int:
    found = _BITS.match(dtype)
    return int(found[1]) if found else 8  # pred, the only dtype without a number, takes a byte.


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Name, whether it is the entry, and lines of every computation."""
    lines: list[str] = []
    header: re.Match[str] | None = None
    for line in text.splitlines():
        if not line.startswith((" ", "}")):
            header, lines = _HEADER.match(line), []
        elif line.startswith("}") and header is not None:
            yield header[2], header[1] is not None, lines
            header = None
        else:
            lines.append(line)


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, shape, opcode = found.groups()
    end = _closing(line, found.end())
    arguments = line[found.end() : end]
    return Instruction(
        name=name,
        opcode=opcode,
        results=arrays(shape),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=line[end + 1 :],
        is_root=root is not None,
    )


def _closing(line: str, start: int) -> int:
    """Where the parenthesis that is open at `start` closes."""
    depth = 1
    for found in re.finditer(r"[()]", line[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    return len(line)
