"""How often a program runs each of its instructions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from jaxscale.planner.hlo.branches import CHOICE, LOOP, Path, TickShares, branch_shares
from jaxscale.planner.hlo.loops import Scope, loop_trips
from jaxscale.planner.hlo.products import product_flops
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

    times: of a program whose choices are weighed, a mean over its devices, which need not be whole.
    exact: false in a loop whose trips cannot be read, which counts as one.
    """

    instruction: Instruction
    computation: Computation
    times: Fraction
    exact: bool


def executed(module: Module, shares: TickShares | None = None) -> Iterator[Executed]:
    """Every instruction that runs: loops by their trips, fusions and calls opened.

    Of a choice the longest branch, or, in a pipeline's loop over ticks, each branch as often as `shares` says.
    """
    yield from _inside(Scope(module, module.entry), _Often(Fraction(1), True, (), shares))


@dataclass(frozen=True)
class _Often:
    """How often a computation runs, and what it stands in."""

    times: Fraction
    exact: bool
    path: Path
    shares: TickShares | None

    def within(self, kind: str, factor: Fraction | int = 1, *, exact: bool = True) -> "_Often":
        return replace(
            self,
            times=self.times * factor,
            exact=self.exact and exact,
            path=(*self.path, kind),
        )


def _inside(scope: Scope, often: _Often) -> Iterator[Executed]:
    for instruction in scope.computation.instructions.values():
        yield Executed(instruction, scope.computation, often.times, often.exact)
        for inner, more in _opened(scope, instruction, often):
            yield from _inside(inner, more)


def _opened(
    scope: Scope, instruction: Instruction, often: _Often
) -> Iterator[tuple[Scope, _Often]]:
    """What an instruction runs; not the scalar functions of reductions, sorts and scatters, nor loops' conditions."""
    module = scope.module
    if instruction.opcode == CHOICE:
        branches = _branches(module, instruction)
        for branch, share in zip(branches, _shares(module, branches, often), strict=True):
            if share:
                yield Scope(module, branch), often.within(CHOICE, share)
        return
    called = _called(module, instruction)
    if called is None:
        return
    if instruction.opcode in _PASSING_ARGUMENTS:
        yield scope.inside(instruction), often
    elif instruction.opcode == LOOP:
        trips = loop_trips(scope, instruction)
        yield Scope(module, called), often.within(LOOP, trips or 1, exact=trips is not None)
    else:
        yield Scope(module, called), often


def _shares(module: Module, branches: list[Computation], often: _Often) -> list[Fraction]:
    lengths = [_length(module, branch) for branch in branches]
    products = [_has_products(module, branch) for branch in branches]
    return branch_shares(often.shares, often.path, lengths, products)


def _called(module: Module, instruction: Instruction) -> Computation | None:
    role = _ROLES.get(instruction.opcode)
    name = None if role is None else instruction.called(role)
    return None if name is None else module.computations[name]


def _branches(module: Module, instruction: Instruction) -> list[Computation]:
    listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    names = re.findall(r"[\w.-]+", listed or "")
    two = (instruction.called(role) for role in ("true_computation", "false_computation"))
    return [module.computations[name] for name in names or two if name is not None]


def _all_called(module: Module, instruction: Instruction) -> list[Computation]:
    if instruction.opcode == CHOICE:
        return _branches(module, instruction)
    called = _called(module, instruction)
    return [] if called is None else [called]


def _length(module: Module, computation: Computation) -> int:
    """Instructions of a computation, and of all that it calls."""
    instructions = computation.instructions.values()
    inner = (called for each in instructions for called in _all_called(module, each))
    return len(instructions) + sum(_length(module, called) for called in inner)


def _has_products(module: Module, computation: Computation) -> bool:
    for each in computation.instructions.values():
        if product_flops(computation, each) is not None:
            return True
        if any(_has_products(module, called) for called in _all_called(module, each)):
            return True
    return False
