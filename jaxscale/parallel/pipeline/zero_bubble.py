"""An order of passes with almost no bubble, found by trying: ZB-2p of Qi et al. 2023 (arXiv:2401.10241, section 3).

Stages start one after another, so the last ones finish their gradients later. Where an optimizer step does not wait
for all stages (section 4 there) a step takes as long as its longest stage from first pass to last, and only idle
time in between counts. Nothing executes these orders: in lockstep they gain nothing.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxscale.parallel.pipeline.classical import Orders
from jaxscale.parallel.pipeline.simulate import Times, asynchronous, uniform
from jaxscale.parallel.pipeline.table import Kind, Operation

# How much later than possible the first backward pass may come, in forward passes: so many are tried.
_LATENESS = (0.0, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """microbatches: whose residuals a stage has room for. kept: the share of them that W still needs after B.

    Qi et al., table 1: kept = 32 / (34 + 5 heads sequence / width) where attention keeps its scores.
    """

    microbatches: int
    kept: float


def zero_bubble_orders(
    *, stages: int, microbatches: int, times: Times, send: float, memory: Memory
) -> Orders:
    """The best of a few greedy orders, by their longest stage. times: of a microbatch through a stage."""
    costs = uniform(stages, stage=times, send=send)
    tried = [
        _Greedy(stages, microbatches, times, send, memory, share * times.forward).orders()
        for share in _LATENESS
    ]
    return min(tried, key=lambda orders: asynchronous(orders, costs).longest_stage)


@dataclass
class _Stage:
    """What a stage has done. ahead: how many forward passes it had made when its first backward pass began."""

    order: list[Operation] = field(default_factory=list)
    ends: dict[Kind, list[float]] = field(default_factory=lambda: {"F": [], "B": [], "W": []})
    ahead: int | None = None

    def count(self, kind: Kind) -> int:
        return len(self.ends[kind])


@dataclass
class _Greedy:
    """Each stage, whenever it is free, takes what is ready: F before B before W.

    Until its first B it makes as many F as time and memory allow, then one for each B. As gradients of weights
    fill whatever gaps there are, the order of the others may follow from what arrives.
    """

    stages: int
    microbatches: int
    times: Times
    send: float
    memory: Memory
    lateness: float

    def orders(self) -> Orders:
        done = [_Stage() for _ in range(self.stages)]
        free = [(0.0, stage) for stage in range(self.stages)]
        waiting: set[int] = set()
        while free:
            now, stage = heapq.heappop(free)
            kind = self._choose(done, stage, now)
            if kind is not None:
                end = now + self._duration(kind)
                self._do(done[stage], kind, end)
                woken = {stage - 1, stage + 1} & waiting
                waiting -= woken
                for again, other in ((end, stage), *((now, other) for other in woken)):
                    heapq.heappush(free, (again, other))
            elif (later := self._next_arrival(done, stage, now)) is not None:
                heapq.heappush(free, (later, stage))
            elif done[stage].count("W") < self.microbatches:
                waiting.add(stage)
        return [one.order for one in done]

    def _duration(self, kind: Kind) -> float:
        return {"F": self.times.forward, "B": self.times.backward, "W": self.times.weight}[kind]

    def _do(self, one: _Stage, kind: Kind, end: float) -> None:
        if kind == "B" and one.ahead is None:
            one.ahead = one.count("F")
        one.order.append(Operation(kind, one.count(kind)))
        one.ends[kind].append(end)

    def _choose(self, done: Sequence[_Stage], stage: int, now: float) -> Kind | None:
        one = done[stage]
        if _is_there(self._arrival(done, stage, "F"), now) and self._may_go_ahead(one, stage, now):
            return "F"
        if _is_there(self._arrival(done, stage, "B"), now):
            return "B"
        return "W" if one.count("B") > one.count("W") else None

    def _may_go_ahead(self, one: _Stage, stage: int, now: float) -> bool:
        owed = one.count("B") - one.count("W")
        running = one.count("F") - one.count("B")
        if running + owed * self.memory.kept + 1 > self.memory.microbatches + 1e-9:
            return False
        if one.ahead is not None:
            return running < one.ahead
        first = self._first_backward(stage) + self.lateness
        return running == 0 or now + self.times.forward <= first

    def _first_backward(self, stage: int) -> float:
        """When the first gradient can reach a stage."""
        last = self.stages - 1
        there = last * (self.times.forward + self.send) + self.times.forward
        return there + (last - stage) * (self.times.backward + self.send)

    def _arrival(self, done: Sequence[_Stage], stage: int, kind: Kind) -> float | None:
        """When what the stage's next F or B needs is there; None while that is not known, or there is none."""
        number = done[stage].count(kind)
        source = stage - 1 if kind == "F" else stage + 1
        if number == self.microbatches:
            return None
        if kind == "B" and number >= done[stage].count("F"):
            return None
        if not 0 <= source < self.stages:
            return 0.0 if kind == "F" else done[stage].ends["F"][number]
        ends = done[source].ends[kind]
        return ends[number] + self.send if number < len(ends) else None

    def _next_arrival(self, done: Sequence[_Stage], stage: int, now: float) -> float | None:
        kinds: tuple[Kind, ...] = ("F", "B")
        arrivals = (self._arrival(done, stage, kind) for kind in kinds)
        return min((one for one in arrivals if one is not None and one > now), default=None)


def _is_there(arrival: float | None, now: float) -> bool:
    return arrival is not None and arrival <= now
