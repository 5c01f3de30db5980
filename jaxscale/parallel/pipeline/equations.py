"""Traced functions as lists of equations: which of them a result needs, and running just those."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal, Var

# Equations that only call another function: what they hold is taken out, so that it can be divided.
_CALLS = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "checkpoint",
        "remat",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
    }
)
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")

Atom = Any  # A Var or a Literal.
Values = dict[Var, Any]


@dataclass(frozen=True)
class Traced:
    """A function as equations. inputs: by argument, in the order of `jax.tree.leaves`; constants: captured arrays."""

    inputs: tuple[tuple[Var, ...], ...]
    outputs: tuple[Atom, ...]
    equations: tuple[JaxprEqn, ...]
    constants: Mapping[Var, Any]


def trace(function: Callable[..., Any], *arguments: Any) -> Traced:
    """The equations of `function`, whose results are flattened; calls inside are taken apart."""

    def flat(*values: Any) -> list[Any]:
        return jax.tree.leaves(function(*values))

    outer = jax.make_jaxpr(flat)(*arguments)
    leaves = [leaf for argument in arguments for leaf in jax.tree.leaves(argument)]
    closed = jax.make_jaxpr(lambda *values: _inlined(outer.jaxpr, outer.consts, values))(*leaves)
    variables = iter(closed.jaxpr.invars)
    return Traced(
        inputs=tuple(
            tuple(next(variables) for _ in jax.tree.leaves(argument)) for argument in arguments
        ),
        outputs=tuple(closed.jaxpr.outvars),
        equations=tuple(closed.jaxpr.eqns),
        constants=dict(zip(closed.jaxpr.constvars, closed.consts, strict=True)),
    )


def needed(
    equations: Sequence[JaxprEqn], results: Iterable[Atom], given: Iterable[Var] = ()
) -> list[JaxprEqn]:
    """The equations, in order, from which `results` follow where the variables `given` are known."""
    known = set(given)
    wanted = {atom for atom in results if isinstance(atom, Var)} - known
    kept = []
    for equation in reversed(equations):
        if not wanted.isdisjoint(equation.outvars):
            kept.append(equation)
            wanted |= set(variables_of(equation)) - known
    return kept[::-1]


def following(equations: Sequence[JaxprEqn], start: Iterable[Var]) -> set[Var]:
    """The variables that depend on any of `start`, themselves included."""
    reached = set(start)
    for equation in equations:
        if not reached.isdisjoint(variables_of(equation)):
            reached.update(equation.outvars)
    return reached


def variables_of(equation: JaxprEqn) -> list[Var]:
    """What an equation reads."""
    return [atom for atom in equation.invars if isinstance(atom, Var)]


def evaluate(equations: Sequence[JaxprEqn], values: Values, results: Sequence[Atom]) -> list[Any]:
    """`results` by the equations, in order; `values` holds whatever else they read."""
    read = [atom for atom in _free(equations, results) if atom in values]
    part = _NOTHING.replace(invars=read, outvars=list(results), eqns=list(equations))
    return list(jax.core.eval_jaxpr(part, (), *(values[variable] for variable in read)))


# Its fields differ between versions of JAX: a function of nothing, to be filled.
_NOTHING = jax.make_jaxpr(lambda: ())().jaxpr


def _free(equations: Iterable[JaxprEqn], results: Iterable[Atom]) -> list[Var]:
    """The variables that equations and results read, each once."""
    atoms = [atom for equation in equations for atom in equation.invars] + list(results)
    return list(dict.fromkeys(atom for atom in atoms if isinstance(atom, Var)))


def _inlined(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    for equation in jaxpr.eqns:
        called = _called(equation)
        if called is None:
            outs = evaluate([equation], values, equation.outvars)
        else:
            read = [
                atom.val if isinstance(atom, Literal) else values[atom] for atom in equation.invars
            ]
            outs = _inlined(getattr(called, "jaxpr", called), getattr(called, "consts", ()), read)
        values.update(zip(equation.outvars, outs, strict=True))
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars]


def _called(equation: JaxprEqn) -> Any:
    if equation.primitive.name not in _CALLS:
        return None
    return next((equation.params[key] for key in _CALLED if key in equation.params), None)
