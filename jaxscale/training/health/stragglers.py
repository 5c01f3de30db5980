"""Hosts that hold the others up: by the time that each needs for its own part of a step, and by its devices' pace.

Step times say nothing: all processes wait for the slowest in every collective, so they all have its. What a process
does by itself between steps (reading its rows, placing them, Python) nobody waits inside of, so it differs. What its
devices do inside a step is told by other work, which they do alone (`pace`).
"""

import statistics
from collections.abc import Sequence

from jaxscale.training.health.hosts import named

# A host is named whose own time is over this multiple of the median, if that costs a noticeable share of the step.
FACTOR, _SHARE = 1.5, 0.05


def stragglers(own_seconds: Sequence[float], step_seconds: float) -> list[int]:
    """Processes that are slower than the others; all times are per step."""
    usual = statistics.median_low(own_seconds)  # Of two, the faster one.
    return [
        process
        for process, seconds in enumerate(own_seconds)
        if seconds > FACTOR * usual and seconds - usual > _SHARE * step_seconds
    ]


def straggler_message(
    own_seconds: Sequence[float], step_seconds: float, hosts: tuple[str, ...]
) -> str | None:
    """Who holds the run up, and by how much; None for nobody."""
    slow = stragglers(own_seconds, step_seconds)
    if not slow:
        return None
    usual = statistics.median_low(own_seconds)
    listed = ", ".join(f"{named(process, hosts)} {own_seconds[process]:.3g} s" for process in slow)
    return (
        f"slow hosts: for its own part of a step {listed}, over {FACTOR} times the median of {usual:.3g} s; "
        f"a step takes {step_seconds:.3g} s. Look at its disk, its processors and what else runs there"
    )


def slow_devices(paces: Sequence[float]) -> list[int]:
    """Processes whose devices take longer for the same products; all times are of a look."""
    usual = statistics.median_low(paces) if paces else 0.0
    return [process for process, seconds in enumerate(paces) if seconds > FACTOR * usual]


def slow_devices_message(paces: Sequence[float], hosts: tuple[str, ...]) -> str | None:
    """Whose devices hold the run up, and by how much; None for nobody."""
    slow = slow_devices(paces)
    if not slow:
        return None
    usual = statistics.median_low(paces)
    listed = ", ".join(f"{named(i, hosts)} {paces[i] / usual:.1f} times as long" for i in slow)
    return (
        f"slow devices: for the same products of matrices, done alone, {listed} as the others. Look at what else runs "
        "on that machine, at its temperature and clocks (jaxscale doctor), or take it out of the run"
    )
