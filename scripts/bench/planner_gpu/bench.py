"""Cases one after another while there is time; what is known is written after each."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch import Setting, smi

from jaxscale.hardware import find_chip
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.calibration import efficiency_of
from planner_gpu.cases import Case
from planner_gpu.predicting import predicted
from planner_gpu.processes import Child, start
from planner_gpu.scores import errors_of, measured_of, suggestion, summarize
from planner_gpu.table import markdown

# Plans that the question asks for: fewer are no answer.
ENOUGH = 12
# Seconds that a case is expected to take before one has been seen.
_EXPECTED = 30.0


@dataclass(frozen=True)
class Options:
    """minutes: for all, from `started`. child: arguments of every measuring process. platform: for JAX_PLATFORMS."""

    out: Path
    started: float
    minutes: float
    child: tuple[str, ...] = ()
    platform: str | None = None

    @property
    def deadline(self) -> float:
        return self.started + 60 * self.minutes


@dataclass
class Bench:
    """plans: what is written of each case, predictions before anything is measured."""

    cases: Sequence[Case]
    cluster: Cluster
    setting: Setting
    options: Options
    plans: list[dict[str, Any]] = field(default_factory=list)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.machine = {"date": now, "python": sys.version.split()[0], **smi()}
        waiting = self._start(0)
        try:
            self.predictions = {case.name: predicted(case, self.cluster) for case in self.cases}
            for number, case in enumerate(self.cases):
                child, waiting = waiting, None
                left = self.options.deadline - time.time()
                if child is None or left < self._expected():
                    self.skipped = [f"{each.name}" for each in self.cases[number:]]
                    waiting = child
                    break
                waiting = self._start(number + 1)
                self._measure(case, child, left)
        finally:
            if waiting is not None:
                waiting.stop()
        self.save()

    def results(self) -> dict[str, Any]:
        whole = [plan for plan in self.plans if not plan["packed"]]
        packed = [plan for plan in self.plans if plan["packed"]]
        constants = asdict(efficiency_of(self.cluster))
        return {
            "machine": self.machine,
            "versions": self.versions,
            "cluster": self.cluster.name,
            "constants": constants,
            "summary": {"whole rows": summarize(whole), "packed rows": summarize(packed)},
            "suggestion": suggestion(whole, constants["products"]),
            "plans": self.plans,
            "skipped": self.skipped,
            "problems": self.problems(),
        }

    def save(self) -> None:
        results = self.results()
        (self.options.out / "planner_gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        (self.options.out / "planner_gpu.md").write_text(markdown(results))

    def problems(self) -> list[str]:
        """What makes the exit status 1: nothing about the errors, everything about whether there are any."""
        done = [plan for plan in self.plans if plan["status"] == "ok"]
        least = min(ENOUGH, len(self.cases))
        broken = [plan for plan in self.plans if plan["status"] in {"failed", "out of memory"}]
        found = [f"{plan['name']}: {plan['status']}" for plan in broken]
        if len(done) < least:
            found.append(f"{len(done)} plans have a result; {least} are needed")
        for device in sorted({plan["device"] for plan in done}):
            chip = find_chip(device)
            if self.cluster.kind != "cpu" and chip != self.cluster.chip:
                found.append(f"{device} was measured, {self.cluster.chip.name} predicted")
        return found

    def _start(self, number: int) -> Child | None:
        if number >= len(self.cases):
            return None
        name = self.cases[number].name
        return start(name, self.options.child, self.setting, self.options.platform)

    def _expected(self) -> float:
        """Of the longest so far."""
        return max((plan["seconds"] for plan in self.plans), default=_EXPECTED)

    def _measure(self, case: Case, child: Child, left: float) -> None:
        result = child.finish(left)
        with self.setting.log.open("a") as log:
            print(f"=== {case.name}\n{child.written()}", file=log)
        self.versions |= result.pop("versions", {})
        self.plans.append(_plan(case, self.predictions[case.name], result))
        self.save()
        print(_told(self.plans[-1]), file=sys.stderr, flush=True)


def _plan(case: Case, prediction: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    measured = measured_of(result)
    result["error_text"] = result.pop("error", "")
    described = {"name": case.name, **asdict(case)}
    error = errors_of(prediction, measured)
    return {**described, "predicted": prediction, "measured": measured, "error": error, **result}


def _told(plan: dict[str, Any]) -> str:
    errors = ", ".join(f"{name} {error:+.1%}" for name, error in plan["error"].items())
    return (
        f"{plan['name']}: {plan['status']}, {plan['seconds']:.0f} s: {errors or plan['error_text']}"
    )
