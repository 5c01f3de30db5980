"""Trips of a loop, read off its condition where the compiler did not note them (TPU programs)."""

import math
import re
from dataclasses import dataclass

from jaxscale.planner.hlo.text import Computation, Instruction, Module

_KNOWN_TRIPS = r'"known_trip_count":\s*\{"n":\s*"(\d+)"'
# Through these a value passes unchanged, wherever it lies and in whatever width.
_PASSING = ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape", "opt-barrier")


@dataclass(frozen=True)
class Scope:
    """A computation, and the arguments that its caller gave it (none: not known, as those of a loop's pass)."""

    module: Module
    computation: Computation
    arguments: tuple["Value", ...] = ()

    def values(self, names: tuple[str, ...]) -> tuple["Value", ...]:
        return tuple(Value(self, self.computation.instructions[name]) for name in names)

    def inside(self, caller: Instruction) -> "Scope":
        """What a fusion or a call opens."""
        name = caller.called("calls") or caller.called("to_apply") or ""
        return Scope(self.module, self.module.computations[name], self.values(caller.operands))


@dataclass(frozen=True)
class Value:
    """What an instruction makes."""

    scope: Scope
    made_by: Instruction

    @property
    def operands(self) -> tuple["Value", ...]:
        return self.scope.values(self.made_by.operands)

    @property
    def constant(self) -> int | None:
        is_constant = self.made_by.opcode == "constant"
        whole = re.fullmatch(r"-?\d+", self.made_by.arguments) if is_constant else None
        return int(whole[0]) if whole else None

    @property
    def element(self) -> int | None:
        """Which element of the loop's tuple this is."""
        if self.made_by.opcode != "get-tuple-element":
            return None
        origin = _source(self.operands[0]).made_by.opcode
        return _index(self.made_by) if origin == "parameter" else None


def loop_trips(scope: Scope, loop: Instruction) -> int | None:
    """What the compiler noted; else ceil((limit - start) / step) of a counter that runs up to a limit, or None."""
    known = loop.attribute(_KNOWN_TRIPS)
    return int(known) if known else _counted_trips(scope, loop)


def _counted_trips(scope: Scope, loop: Instruction) -> int | None:
    module, start_of_all = scope.module, scope.values(loop.operands)[0]
    compare = _root(module, loop.called("condition"))
    direction = compare.made_by.attribute(r"direction=(\w+)")
    if direction not in {"LT", "LE"}:
        return None
    counter, limit = (_source(operand) for operand in compare.operands)
    index = counter.element
    if index is None:
        return None
    bound = _at_start(limit, start_of_all)
    start = _source(_part(start_of_all, index)).constant
    step = _step(_root(module, loop.called("body")), index, start_of_all)
    if bound is None or start is None or step is None or step < 1:
        return None
    return max(0, math.ceil((bound + (direction == "LE") - start) / step))


def _step(new: Value, index: int, start_of_all: Value) -> int | None:
    """What a pass adds to an element of its tuple."""
    changed = _source(_part(new, index))
    if changed.made_by.opcode != "add":
        return None
    terms = [_source(operand) for operand in changed.operands]
    others = [term for term in terms if term.element != index]
    return _at_start(others[0], start_of_all) if len(others) == 1 else None


def _at_start(value: Value, start_of_all: Value) -> int | None:
    """A constant, or an element of the loop's tuple that is one where the loop starts."""
    index = value.element
    return value.constant if index is None else _source(_part(start_of_all, index)).constant


def _root(module: Module, name: str | None) -> Value:
    computation = module.computations[name or ""]
    return _source(Value(Scope(module, computation), computation.root))


def _part(whole: Value, index: int) -> Value:
    """An element of a tuple; the tuple itself where it is made by something that cannot be looked into."""
    whole = _source(whole)
    return whole.operands[index] if whole.made_by.opcode == "tuple" else whole


def _source(value: Value) -> Value:
    """Where a value comes from: through copies, into fusions, out to the arguments of a fusion."""
    while True:
        further = _one_back(value)
        if further is None:
            return value
        value = further


def _one_back(value: Value) -> Value | None:
    made_by, scope = value.made_by, value.scope
    if made_by.opcode in _PASSING:
        return value.operands[0]
    if made_by.opcode == "parameter" and scope.arguments:
        return scope.arguments[int(made_by.arguments)]
    if made_by.opcode in {"fusion", "call"}:
        inside = scope.inside(made_by)
        return Value(inside, inside.computation.root)
    if made_by.opcode == "get-tuple-element":
        whole = _source(value.operands[0])
        is_tuple = whole.made_by.opcode == "tuple"
        return whole.operands[_index(made_by)] if is_tuple else None
    return None


def _index(made_by: Instruction) -> int:
    return int(made_by.attribute(r"index=(\d+)") or 0)
