"""Seconds of a kernel on the device at hand, and which of its configurations is fastest.

Inputs are random, and several sets of them, taken in turn, so that no call finds the operands of the one before in a
cache.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jax

from jaxscale.errors import UserError
from jaxscale.kernels.cases import Case, moved_bytes
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.registry import Implementation, key_of
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config, Entry

# Several times the last-level cache of any chip: 50 MiB on an H200.
WORKING_SET = 256 * 2**20
_MOST_SETS = 8


class NothingToTune(UserError):
    """No Pallas kernel serves a case on a target, or nothing ran there that one could be compared with."""


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
    baseline = case.baseline(target)
    for each in sorted(case.implementations, key=lambda each: each.name != baseline):
        reason = each.reason(target, case.call)
        if reason is not None:
            yield Measurement(case, each.name, {}, None, reason)
        else:
            yield timed(case, each.name, {}, target, timing)


def tune(case: Case, target: Target, timing: Timing) -> list[Entry]:
    """An entry for each Pallas kernel that serves the case: its fastest configuration beside the baseline.

    Raises NothingToTune where there is none, with the reasons.
    """
    kernels = [e for e in case.implementations if e.is_pallas]
    reasons = {e.name: e.reason(target, case.call) for e in kernels}
    willing = [e for e in kernels if reasons[e.name] is None]
    if not willing:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise NothingToTune(f"nothing to tune for {case.op} on {target.device_kind}: {told}")
    baseline = timed(case, case.baseline(target), {}, target, timing)
    if baseline.seconds is None:
        raise NothingToTune(f"{case.name}: {baseline.implementation} did not run: {baseline.why}")
    best = [(kernel, _best(case, kernel, target, timing)) for kernel in willing]
    ran = [(kernel, found) for kernel, found in best if found.seconds is not None]
    if not ran:
        told = "; ".join(f"{kernel.name}: {found.why}" for kernel, found in best)
        raise NothingToTune(f"{case.name}: no configuration ran: {told}")
    return [entry_of(found, kernel, baseline, target) for kernel, found in ran]


def entry_of(
    best: Measurement, kernel: Implementation[Any], baseline: Measurement, target: Target
) -> Entry:
    """What a table keeps of a kernel's fastest configuration and its baseline, both of which ran."""
    assert best.seconds is not None, best.why
    assert baseline.seconds is not None, baseline.why
    key: Mapping[str, Any] = vars(key_of(best.case.op, kernel, target, best.case.call))
    return Entry(
        **key,
        config=best.config,
        seconds=best.seconds,
        baseline_seconds=baseline.seconds,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def seconds_of(
    function: Callable[..., Any], sets: Sequence[tuple[jax.Array, ...]], timing: Timing
) -> float:
    """Median seconds of a call, compiled, on sets of inputs in turn; one wait a group, as a step would."""
    compiled = jax.jit(function)
    for inputs in sets:
        jax.block_until_ready(compiled(*inputs))
    calls = 1
    while (once := _group(compiled, sets, calls)) < timing.seconds:
        calls = max(calls + 1, int(1.2 * calls * timing.seconds / max(once, 1e-6)))
    return statistics.median(_group(compiled, sets, calls) / calls for _ in range(timing.groups))


def _group(compiled: Callable[..., Any], sets: Sequence[Any], calls: int) -> float:
    """Seconds of so many calls. Only the last result is kept: a group's may be larger than the memory."""
    begin, result = time.perf_counter(), None
    for number in range(calls):
        result = compiled(*sets[number % len(sets)])
    jax.block_until_ready(result)
    return time.perf_counter() - begin


def inputs_of(case: Case, count: int | None = None) -> list[tuple[jax.Array, ...]]:
    """Sets of random inputs: so many, or as many as fill several times a cache. The same ones at every call."""
    if count is None:
        size = max(1, int(moved_bytes(case.operands)))
        count = min(_MOST_SETS, max(1, -(-WORKING_SET // size)))
    return [case.inputs(key) for key in jax.random.split(jax.random.key(0), count)]


def timed(case: Case, name: str, config: Config, target: Target, timing: Timing) -> Measurement:
    """One implementation with one configuration; that it does not fit the device is an answer too."""
    choice = Choice(name, {}, op=case.op, config=config, target=target)
    try:
        found = seconds_of(case.run(choice, target), inputs_of(case), timing)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return Measurement(case, name, config, None, str(error).splitlines()[0])
    return Measurement(case, name, config, found)


def _best(case: Case, kernel: Implementation[Any], target: Target, timing: Timing) -> Measurement:
    """The fastest configuration, or where none ran the last one, which says why."""
    configs: Sequence[Config] = [{}, *case.candidates.get(kernel.name, ())]
    tried = [timed(case, kernel.name, config, target, timing) for config in configs]
    ran = [each for each in tried if each.seconds is not None]
    return min(ran, key=lambda each: each.seconds or 0, default=tried[-1])
