"""Hosts that hold the others up, told by the time that each needs for its own part of a step.

Step times say nothing: all processes wait for the slowest in every collective, so they all have its. What a process
does by itself between steps (reading its rows, placing them, Python) nobody waits inside of, so it differs.
"""

import statistics
from collections.abc import Sequence

from jaxscale.training.health.hosts import named

# A host is named whose own time is over this multiple of the median, if that costs a noticeable share of the step.
FACTOR, _SHARE = 1.5, 0.05


def stragglers(own_seconds: Sequence[float], step_seconds: float) -> list[int]:
    """Processes that are slower than the others; all times are per step."""
    usual = statistics.median(own_seconds)
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
    usual = statistics.median(own_seconds)
    listed = ", ".join(f"{named(process, hosts)} {own_seconds[process]:.3g} s" for process in slow)
    return (
        f"slow hosts: for its own part of a step {listed}, over {FACTOR} times the median of {usual:.3g} s; "
        f"a step takes {step_seconds:.3g} s. Look at its disk, its processors and what else runs there"
    )
