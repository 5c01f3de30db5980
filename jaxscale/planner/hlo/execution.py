"""How often a program runs each of its instructions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxscale.planner.hlo.loops import Scope, loop_trips
from jaxscale.planner.hlo.text import Computation, Instruction, Module

_ROLES = {
    "while": "body",
    "fusion": "calls",
    "fusion-start": "calls",
    "call": "to_apply",
    "call-start": "to_apply",
    "async-start": "calls",
    "custom-call": "calls",
}


_PASSING_ARGUMENTS = ("fusion", "fusion-start", "call", "call-start")


@dataclass(frozen=True)
class Executed:
    """An instruction, where it stands, and how often one device runs it in a call of the program.

    exact: false in a loop whose trips cannot be read, which counts as one.
    """

    instruction: Instruction
    computation: Computation
    times: int
    exact: bool


def executed(module: Module) -> Iterator[Executed]:
    """Every instruction that runs: loops by their trips, fusions and calls opened, the longest branch of a choice."""
    yield from _inside(Scope(module, module.entry), 1, exact=True)


def _inside(scope: Scope, times: int, *, exact: bool) -> Iterator[Executed]:
    for instruction in scope.computation.instructions.values():
        yield Executed(instruction, scope.computation, times, exact)
        called = _called(scope.module, instruction)
        if called is None:
            continue
        if instruction.opcode in _PASSING_ARGUMENTS:
            yield from _inside(scope.inside(instruction), times, exact=exact)
            continue
        trips = loop_trips(scope, instruction) if instruction.opcode == "while" else 1
        often = times if trips is None else times * trips
        yield from _inside(Scope(scope.module, called), often, exact=exact and trips is not None)


def _called(module: Module, instruction: Instruction) -> Computation | None:
    """What an instruction runs; not the scalar functions of reductions, sorts and scatters, nor loops' conditions."""
    if instruction.opcode == "conditional":
        return max(_branches(module, instruction), key=lambda branch: _length(module, branch))
    role = _ROLES.get(instruction.opcode)
    name = None if role is None else instruction.called(role)
    return None if name is None else module.computations[name]


def _branches(module: Module, instruction: Instruction) -> list[Computation]:
    listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    names = re.findall(r"[\w.-]+", listed or "")
    two = (instruction.called(role) for role in ("true_computation", "false_computation"))
    return [module.computations[name] for name in names or two if name is not None]


def _length(module: Module, computation: Computation) -> int:
    """Instructions of a computation, and of all that it calls."""
    instructions = computation.instructions.values()
    inner = (_called(module, each) for each in instructions)
    return len(instructions) + sum(_length(module, each) for each in inner if each is not None)
