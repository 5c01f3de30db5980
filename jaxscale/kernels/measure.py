"""Seconds of a kernel on the device at hand, and which of its configurations is fastest.

Inputs are random normal numbers: zeros draw less power and run up to 13 % faster on a GPU. They are several sets, taken
in turn, so that no call finds the operands of the one before in a cache.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.errors import UserError
from jaxscale.kernels.cases import Case
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.registry import Implementation, key_of
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config, Entry

# Several times the last-level cache of any chip: 50 MiB on an H200.
_WORKING_SET = 256 * 2**20
_MOST_SETS = 8
# The implementation that is always there, beside which the others are measured.
BASELINE = "xla"


@dataclass(frozen=True)
class Timing:
    """groups: medians are of so many. seconds: that each group takes at least."""

    groups: int = 5
    seconds: float = 0.02


@dataclass(frozen=True)
class Measurement:
    """seconds: None where the implementation did not run, and `why` says why not."""

    case: Case
    implementation: str
    config: Config
    seconds: float | None
    why: str = ""


def measure(case: Case, target: Target, timing: Timing) -> Iterator[Measurement]:
    """Each implementation that serves the case with its default configuration, the baseline first."""
    for each in _baseline_first(case.implementations):
        reason = each.reason(target, case.call)
        if reason is not None:
            yield Measurement(case, each.name, {}, None, reason)
        else:
            yield timed(case, each.name, {}, target, timing)


def tune(case: Case, target: Target, timing: Timing) -> list[Entry]:
    """An entry for each Pallas kernel that serves the case: its fastest configuration beside the baseline.

    Raises UserError where there is none.
    """
    kernels = [e for e in case.implementations if e.is_pallas]
    willing = [e for e in kernels if e.reason(target, case.call) is None]
    if not willing:
        told = "; ".join(f"{e.name}: {e.reason(target, case.call)}" for e in kernels)
        raise UserError(f"nothing to tune for {case.name} on {target.device_kind}: {told}")
    baseline = timed(case, BASELINE, {}, target, timing)
    assert baseline.seconds is not None, baseline.why
    found = (_best(case, each, target, timing) for each in willing)
    return [
        _entry(case, kernel, best, baseline.seconds, target)
        for kernel, best in zip(willing, found, strict=True)
        if best is not None
    ]


def seconds_of(
    function: Callable[..., Any], operands: Sequence[jax.ShapeDtypeStruct], timing: Timing
) -> float:
    """Median seconds of a call, compiled, on random inputs; one wait a group, as a step would."""
    sets = inputs_of(operands)
    compiled = jax.jit(function)
    for inputs in sets:
        jax.block_until_ready(compiled(*inputs))
    calls = 1
    while (once := _group(compiled, sets, calls)) < timing.seconds:
        calls = max(calls + 1, int(1.2 * calls * timing.seconds / max(once, 1e-6)))
    return statistics.median(_group(compiled, sets, calls) / calls for _ in range(timing.groups))


def _group(compiled: Callable[..., Any], sets: Sequence[Any], calls: int) -> float:
    begin = time.perf_counter()
    results = [compiled(*sets[number % len(sets)]) for number in range(calls)][-1]
    jax.block_until_ready(results)
    return time.perf_counter() - begin


def inputs_of(
    operands: Sequence[jax.ShapeDtypeStruct], count: int | None = None
) -> list[tuple[jax.Array, ...]]:
    """Sets of random normal inputs: so many, or as many as fill several times a cache."""
    if count is None:
        size = sum(shape.size * shape.dtype.itemsize for shape in operands)
        count = min(_MOST_SETS, max(1, -(-_WORKING_SET // size)))
    keys = jax.random.split(jax.random.key(0), count * len(operands))
    drawn = [
        jax.random.normal(key, shape.shape, jnp.float32).astype(shape.dtype)
        for key, shape in zip(keys, list(operands) * count, strict=True)
    ]
    step = len(operands)
    return [tuple(drawn[first : first + step]) for first in range(0, len(drawn), step)]


def timed(case: Case, name: str, config: Config, target: Target, timing: Timing) -> Measurement:
    """One implementation with one configuration; that it does not fit the device is an answer too."""
    choice = Choice(name, {}, op=case.op, config=config, target=target)
    try:
        found = seconds_of(case.run(choice, target), case.operands, timing)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return Measurement(case, name, config, None, str(error).splitlines()[0])
    return Measurement(case, name, config, found)


def _best(
    case: Case, kernel: Implementation[Any], target: Target, timing: Timing
) -> Measurement | None:
    configs: Sequence[Config] = [{}, *case.candidates.get(kernel.name, ())]
    tried = [timed(case, kernel.name, config, target, timing) for config in configs]
    ran = [each for each in tried if each.seconds is not None]
    return min(ran, key=lambda each: each.seconds or 0, default=None)


def _entry(
    case: Case, kernel: Implementation[Any], best: Measurement, baseline: float, target: Target
) -> Entry:
    assert best.seconds is not None
    key: Mapping[str, Any] = vars(key_of(case.op, kernel, target, case.call))
    return Entry(
        **key,
        config=best.config,
        seconds=best.seconds,
        baseline_seconds=baseline,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _baseline_first(implementations: Sequence[Implementation[Any]]) -> list[Implementation[Any]]:
    return sorted(implementations, key=lambda each: each.name != BASELINE)
