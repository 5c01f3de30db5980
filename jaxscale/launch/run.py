"""Attempts, one after the other, until a run is done or there is no point in another."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxscale.launch.members import Ended, Member
from jaxscale.launch.restarts import USER_ERROR, Attempt, Policy, judge
from jaxscale.launch.screen import Screen
from jaxscale.launch.supervise import Limits, Notices, notices, run_attempt
from jaxscale.telemetry.saved import Unseen, newest_checkpoint

# How much of a log's end is read for its last step.
_TAIL_BYTES = 1 << 16
_NAP_SECONDS = 0.1

# The members of an attempt, which count from 1.
MakeMembers = Callable[[int], Sequence[Member]]
Progress = Callable[[], tuple[int, int]]


def progress_of(directory: Path) -> tuple[int, int]:
    """Step of the newest checkpoint of a run, and the last step that it logged; 0 where there is none to be seen."""
    saved = None
    with contextlib.suppress(Unseen):
        saved = newest_checkpoint(directory)
    checkpoint = 0 if saved is None else saved.step
    return checkpoint, max(_last_logged(directory / "metrics.jsonl"), checkpoint)


def progress_of_log(path: Path) -> tuple[int, int]:
    """The same of a run that is elsewhere, by what the newest attempt of process 0 has said: the step behind which it
    resumed, which is that of the newest checkpoint when it began, and the last step.
    """
    if not path.is_file():
        return 0, 0
    text = path.read_text(encoding="utf-8", errors="replace").rpartition("--- attempt ")[2]
    resumed = re.findall(r"resuming behind step (\d+)", text)
    steps = re.findall(r"^step (\d+)/\d+ ", text, re.MULTILINE)
    start = int(resumed[-1]) if resumed else 0
    return start, int(steps[-1]) if steps else start


def _last_logged(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # Torn: a process was killed while it wrote.
    return 0


def keep_running(
    make_members: MakeMembers,
    progress: Progress,
    *,
    policy: Policy,
    limits: Limits,
    label_width: int,
) -> int:
    """Runs attempts as `policy` says; returns the launcher's exit status. A user's mistake is said once, on stderr."""
    screen, attempts = Screen(max(label_width, len("launch"))), list[Attempt]()
    with notices() as notice:
        while True:
            members = make_members(len(attempts) + 1)
            ended = run_attempt(
                members, attempt=len(attempts) + 1, screen=screen, limits=limits, notice=notice
            )
            attempts.append(Attempt(tuple(ended), *progress()))
            verdict = judge(attempts, policy, asked=_asked(notice))
            if verdict.status is None:
                screen.say(verdict.reason)
                _nap(verdict.delay, notice)
                if not notice.received:
                    continue
                verdict = judge(attempts, policy, asked=_asked(notice))
            return _leave(verdict.status or 0, verdict.reason, ended, screen)


def _asked(notice: Notices) -> int | None:
    return int(notice.received[0]) if notice.received else None


def _nap(seconds: float, notice: Notices) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not notice.received:
        time.sleep(_NAP_SECONDS)


def _leave(status: int, reason: str, ended: Sequence[Ended], screen: Screen) -> int:
    """The last words: a user's mistake as any command says it; else what the processes held back, and the reason."""
    if status == USER_ERROR:
        sys.stderr.write(f"error: {reason}\n")
        return status
    for one in ended:
        if one.message and not one.stopped:
            screen.show(one.label, f"error: {one.message}")
    if reason:
        screen.say(reason)
    return status
