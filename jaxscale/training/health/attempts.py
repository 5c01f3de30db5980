"""Crash loops: a run that is started again by itself, and fails at the same step each time, is refused the next start.

What starts it (Slurm's script, a queue, a loop in a shell) knows exit statuses only, and forgets them when a job is
requeued. So the run counts itself, in a file of its directory, and ends with the one status that nobody starts again.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxscale.errors import UserError
from jaxscale.telemetry.metrics import read as read_metrics
from jaxscale.training.health.preemption import Preempted, Standing
from jaxscale.training.health.watchdog import FOLDER

STARTER_VARIABLE = "JAXSCALE_STARTER"
FILE = "attempts.jsonl"
_ENOUGH = 3


@dataclass(frozen=True)
class Attempt:
    """resumed: the step behind which it began. step: its last known one. reason: why it failed; "" for no failure,
    None where it left no word: killed, or hanging."""

    starter: str
    resumed: int
    step: int
    reason: str | None

    @property
    def failed(self) -> bool:
        """Who is killed before a step may just have had bad luck; its starter limits how often."""
        return bool(self.reason) or (self.reason is None and self.step > self.resumed)


def starter(environment: Mapping[str, str]) -> str | None:
    """What starts this run again by itself; None for a person, and for launchers, which count themselves."""
    given = environment.get(STARTER_VARIABLE)
    if given:
        return given
    if "SLURM_PROCID" in environment and "SLURM_JOB_ID" in environment:  # A task of a step.
        return f"Slurm job {environment['SLURM_JOB_ID']}"
    return None


def counted(directory: Path, *, resumed: int, standing: Standing) -> AbstractContextManager[object]:
    """Around the steps of a run's first process; enter it before the log is cut back to `resumed`.

    Raises UserError where the same starter's last three starts failed at one step. The start behind that is free again.
    """
    by = starter(os.environ)
    return nullcontext() if by is None else _Counted(directory, by, resumed, standing)


@dataclass
class _Counted:
    directory: Path
    starter: str
    resumed: int
    standing: Standing
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.directory / FOLDER / FILE

    def __enter__(self) -> None:
        lines = _lines(self.path)
        if lines and lines[-1]["kind"] == "start":
            log = read_metrics(self.directory / "metrics.jsonl")
            step = max(int(log[-1]["step"]) if log else 0, int(lines[-1]["resumed"]))
            lines.append(self._tell("end", step=step, reason=None))
        row = crash_loop(attempts(lines), self.starter, self.resumed)
        if row:
            self._tell("refused")
            raise UserError(_words(row, self.resumed))
        self._tell("start", starter=self.starter, resumed=self.resumed)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        asked = not isinstance(error, Exception) or isinstance(error, UserError | Preempted)
        reason = "" if asked else f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self._tell("end", step=max(self.standing.done, self.resumed), reason=reason)

    def _tell(self, kind: str, **facts: Any) -> dict[str, Any]:
        """That a run cannot be counted does not end it."""
        line = {"kind": kind, **facts}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines: a process may have been killed as it wrote."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines


def attempts(lines: Sequence[Mapping[str, Any]]) -> list[Attempt]:
    """The attempts since the last one that was refused."""
    found: list[Attempt] = []
    begun: Mapping[str, Any] | None = None
    for line in lines:
        if line["kind"] == "refused":
            found = []
        elif line["kind"] == "start":
            begun = line
        elif begun is not None:
            ended = (int(line["step"]), line["reason"])
            found.append(Attempt(begun["starter"], int(begun["resumed"]), *ended))
    return found


def crash_loop(found: Sequence[Attempt], by: str, resumed: int) -> Sequence[Attempt]:
    """The last attempts, where they are enough, of one starter, failed at one step, and none left a checkpoint newer
    than that of the first.

    resumed: where the attempt behind them begins.
    """
    row = found[-_ENOUGH:]
    left = {*(one.resumed for one in row[1:]), resumed}
    same = len({one.step for one in row}) == len(left) == 1 and {one.starter for one in row} == {by}
    return row if len(row) == _ENOUGH and same and all(one.failed for one in row) else ()


def _words(row: Sequence[Attempt], resumed: int) -> str:
    last = row[-1]
    why = last.reason or "it left no word: killed (memory?), or hanging (stacks are in `health/`)"
    return (
        f"crash loop: the last {len(row)} starts by {last.starter} failed at step {last.step}, with the newest "
        f"checkpoint of step {resumed}; the last one because {why}. Its log says more. Another start would not help: "
        "mend it, and run the same command again, which tries once more"
    )
