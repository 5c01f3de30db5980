"""How a run is doing, by what it writes: while it goes on, after it ended, and when nobody knows."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxscale.config.plan import MESH_AXES
from jaxscale.telemetry.goodput import Goodput, goodput
from jaxscale.telemetry.journal import EVENTS_FILE, Event, read_events, written_by
from jaxscale.telemetry.process import lives
from jaxscale.telemetry.report.run import RunData, load_run
from jaxscale.telemetry.saved import Saved, Unseen, newest_checkpoint

State = Literal[
    "starting", "running", "hung?", "finished", "preempted", "failed", "dead", "unknown"
]

# Silence that is no hang yet: of a run that has made steps, and of one that may still be compiling.
_PATIENCE, _PATIENCE_STARTING = 120.0, 1800.0
_STEPS_OF_PATIENCE, _PAUSES_OF_PATIENCE = 20, 3
_DOING = {
    "startup": "reading data and checkpoint",
    "compile": "compiling",
    "step": "making steps",
    "data_wait": "waiting for data",
    "checkpoint": "saving a checkpoint",
    "evaluation": "evaluating",
    "closing": "closing",
}


@dataclass(frozen=True)
class RunStatus:
    """A run at a moment; None for what is not known.

    why: the state in words. age: seconds since the last sign of life. unseen: why the checkpoints cannot be looked at
    from here, or nothing. seconds_left: to the last step, at the pace of this process with its evaluations and
    checkpoints.
    """

    name: str
    state: State
    why: str
    step: int
    planned_steps: int | None
    latest: Mapping[str, float]
    age: float | None
    saved: Saved | None
    unseen: str
    goodput: Goodput | None
    seconds_left: float | None
    stacks: Path | None
    plan: str

    @property
    def is_going(self) -> bool:
        return self.state in {"starting", "running", "hung?"}


def run_status(directory: Path, *, now: float) -> RunStatus:
    """The status of the run in a directory.

    Raises UserError for a directory that is not there, or a metrics file that is damaged in the middle.
    """
    run, events = load_run(directory), read_events(directory / EVENTS_FILE)
    try:
        return status_of(run, events, directory, newest_checkpoint(directory), now=now)
    except Unseen as reason:
        return replace(status_of(run, events, directory, None, now=now), unseen=str(reason))


def status_of(
    run: RunData, events: Sequence[Event], directory: Path, saved: Saved | None, *, now: float
) -> RunStatus:
    """The same of what has been read already."""
    last_sign = _last_sign(events, directory)
    age = None if last_sign is None else max(0.0, now - last_sign)
    state, why = _state(run, events, age)
    step = max(run.last_step, events[-1].step if events else 0)
    going = state in {"running", "hung?"}
    return RunStatus(
        name=run.name,
        state=state,
        why=why,
        step=step,
        planned_steps=_planned(events) or run.planned_steps,
        latest=latest_values(run),
        age=age,
        saved=saved,
        unseen="",
        goodput=goodput(events),
        seconds_left=_seconds_left(run, events, step) if going else None,
        stacks=_newest_stacks(directory),
        plan=plan_words(run.plan),
    )


def plan_words(text: str) -> str:
    """A plan in a line, by the text of its file: `fsdp 16, tensor 2, 4 microbatches`; nothing where there is none."""
    try:
        plan = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    if not isinstance(plan, dict):
        return ""
    sizes = {axis: plan.get(axis) for axis in MESH_AXES}
    words = [f"{axis} {size}" for axis, size in sizes.items() if isinstance(size, int) and size > 1]
    microbatches = plan.get("microbatches")
    if isinstance(microbatches, int) and microbatches > 1:
        words.append(f"{microbatches} microbatches")
    return ", ".join(words) or "one device"


def latest_values(run: RunData) -> dict[str, float]:
    """The newest value of everything that was logged, by name; without what was last not finite."""
    latest: dict[str, float] = {}
    for record in run.records:
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float)}
        latest |= numbers
        for key in record.get("nonfinite", ()):
            latest.pop(key, None)
    latest.pop("step", None)
    return latest


def status_data(status: RunStatus, now: float) -> dict[str, Any]:
    """Plain JSON types, times in seconds."""
    found, saved = status.goodput, status.saved
    return {
        "name": status.name,
        "state": status.state,
        "why": status.why,
        "step": status.step,
        "planned_steps": status.planned_steps,
        **{key: status.latest.get(key) for key in SHOWN},
        "age_seconds": status.age,
        "checkpoint": saved and {"step": saved.step, "age_seconds": max(0.0, now - saved.time)},
        "checkpoints_unseen": status.unseen or None,
        "seconds_left": status.seconds_left,
        "expected_end": None if status.seconds_left is None else now + status.seconds_left,
        "stacks": status.stacks and str(status.stacks),
        "plan": status.plan,
        "goodput": found and goodput_data(found),
    }


SHOWN = ("loss", "eval_loss", "tokens_per_second", "mfu", "step_seconds")


def goodput_data(found: Goodput) -> dict[str, Any]:
    return {
        "ratio": found.ratio,
        "wall_seconds": found.wall_seconds,
        "seconds": found.seconds,
        "processes": found.num_processes,
        "lost_steps": found.lost_steps,
        "first_step_seconds": found.first_step_seconds,
    }


def _state(run: RunData, events: Sequence[Event], age: float | None) -> tuple[State, str]:
    if not events:
        return _state_without_diary(run, age)
    last, life = events[-1], _current(events)
    if last.kind == "end":
        return _how_it_ended(last)
    process = written_by(life[0]) if life else None
    alive = None if process is None else lives(process)
    if alive is False:
        return "dead", "its process is gone without a last word; the same command goes on"
    stepping = any(event.kind == "progress" for event in life)
    silence, patience = age or 0.0, _patience(run, life) if stepping else _PATIENCE_STARTING
    if silence > patience:
        here = (
            "its process lives" if alive else "whether its process lives cannot be seen from here"
        )
        return (
            "hung?",
            f"no sign of life for {silence:.0f} s, expected within {patience:.0f}; {here}",
        )
    return "running" if stepping else "starting", _DOING.get(last.doing, last.doing)


def _how_it_ended(last: Event) -> tuple[State, str]:
    status = last.facts.get("status")
    if status == "finished":
        return "finished", "made its last step"
    if status == "preempted":
        return "preempted", "asked to go, with a checkpoint saved; the same command goes on"
    return "failed", str(last.facts.get("reason", "no reason was written down"))


def _state_without_diary(run: RunData, age: float | None) -> tuple[State, str]:
    """A run of a version that kept none, or one that has not begun."""
    if run.summary.get("status") == "finished":
        return "finished", "made its last step"
    if age is not None and age < _PATIENCE:
        return "running", "it keeps no diary (events.jsonl)"
    return "unknown", "it keeps no diary (events.jsonl) and has written nothing for a while"


def _patience(run: RunData, life: Sequence[Event]) -> float:
    """What a hang is longer than: many steps, and the longest pause that this process has made before."""
    pauses = (b.time - a.time for a, b in itertools.pairwise(life) if a.kind == "progress")
    step = latest_values(run).get("step_seconds", 0.0)
    return max(_PATIENCE, _STEPS_OF_PATIENCE * step, _PAUSES_OF_PATIENCE * max(pauses, default=0.0))


def _current(events: Sequence[Event]) -> Sequence[Event]:
    """What the newest process told."""
    starts = [index for index, event in enumerate(events) if event.kind == "start"]
    return events[starts[-1] :] if starts else []


def _planned(events: Sequence[Event]) -> int | None:
    planned = [e.facts.get("planned_steps") for e in events if e.kind == "start"]
    return planned[-1] if planned and isinstance(planned[-1], int) else None


def _last_sign(events: Sequence[Event], directory: Path) -> float | None:
    """When the run last wrote something."""
    metrics = directory / "metrics.jsonl"
    signs = [event.time for event in events[-1:]]
    if metrics.is_file():
        signs.append(metrics.stat().st_mtime)
    return max(signs, default=None)


def _seconds_left(run: RunData, events: Sequence[Event], step: int) -> float | None:
    planned = _planned(events) or run.planned_steps
    pace = _pace(_current(events)) or latest_values(run).get("step_seconds")
    return None if planned is None or pace is None else max(0, planned - step) * pace


def _pace(life: Sequence[Event]) -> float | None:
    """Wall seconds a step, from the first step of a process on; None before it has made a few."""
    told = [event for event in life if event.kind == "progress"]
    if len(told) < 2 or told[-1].step - told[0].step < 5:
        return None
    return (told[-1].time - told[0].time) / (told[-1].step - told[0].step)


def _newest_stacks(directory: Path) -> Path | None:
    """What a watchdog left when it last found the run hanging."""
    found = sorted((directory / "health").glob("hang-*.txt"), key=lambda path: path.name)
    return found[-1] if found else None
