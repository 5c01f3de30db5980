"""What follows from how an attempt ended: done, stopped for good, or once more after a pause."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale.launch.members import Ended
from jaxscale.training.health.exits import PREEMPTED

USER_ERROR = 2
FAILURE = 1


@dataclass(frozen=True)
class Policy:
    """max_restarts: in a row without a newer checkpoint between them. crash_loop: failures at one step that are enough.

    first_delay, longest_delay: seconds before a restart; they double with every one in such a row.
    """

    max_restarts: int = 10
    crash_loop: int = 3
    first_delay: float = 2.0
    longest_delay: float = 300.0


@dataclass(frozen=True)
class Attempt:
    """checkpoint: its newest step when the attempt ended, 0 for none. step: the last that was logged."""

    ended: tuple[Ended, ...]
    checkpoint: int = 0
    step: int = 0

    @property
    def failures(self) -> list[Ended]:
        """Members that failed by themselves: not those that were told to end because of them."""
        bad = [one for one in self.ended if one.status not in {0, PREEMPTED}]
        return [one for one in bad if not one.stopped] or bad

    @property
    def preempted(self) -> bool:
        return not self.failures and any(one.status == PREEMPTED for one in self.ended)


@dataclass(frozen=True)
class Verdict:
    """status: the launcher's own exit status; None: start again after `delay` seconds. reason: said to the user."""

    status: int | None
    reason: str
    delay: float = 0.0


def judge(attempts: Sequence[Attempt], policy: Policy, *, asked: int | None = None) -> Verdict:
    """What to do after the last of `attempts`. asked: the signal by which the launcher was told to end."""
    last = attempts[-1]
    refused = next((one for one in last.ended if one.status == USER_ERROR), None)
    if all(one.status == 0 for one in last.ended):
        return Verdict(0, "")
    if refused is not None:
        return Verdict(USER_ERROR, refused.message or f"{refused.words()}; its log says why")
    if asked is not None:
        saved = not last.failures
        return Verdict(PREEMPTED if saved else 128 + asked, "stopped as asked")
    return _again(attempts, policy)


def _again(attempts: Sequence[Attempt], policy: Policy) -> Verdict:
    last, row = attempts[-1], _in_vain(attempts)
    status = PREEMPTED if last.preempted else FAILURE
    why = "stopped with a checkpoint saved" if last.preempted else _blame(last)
    same = [one for one in row if one.failures and one.step == last.step]
    if len(same) >= policy.crash_loop and last.failures:
        return Verdict(
            status,
            f"crash loop: {len(same)} attempts failed at step {last.step}, the last one because {why}. Its log says "
            "more; starting it again would not help",
        )
    if len(row) > policy.max_restarts:
        return Verdict(
            status,
            f"given up after {policy.max_restarts} restarts without a newer checkpoint (--max-restarts); {why}",
        )
    delay = min(policy.first_delay * 2 ** (len(row) - 1), policy.longest_delay)
    return Verdict(
        None,
        f"{why}; restart {len(row)} of {policy.max_restarts} from step {last.checkpoint} in {delay:g} s",
        delay,
    )


def _in_vain(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts since the last one that left a newer checkpoint, and that one."""
    newest = attempts[-1].checkpoint
    row = []
    for attempt in reversed(attempts):
        if attempt.checkpoint != newest:
            break
        row.append(attempt)
    return row


def _blame(attempt: Attempt) -> str:
    first = attempt.failures[0]
    said = f": {first.message.splitlines()[0]}" if first.message else ""
    more = len(attempt.failures) - 1
    return f"{first.words()}{said}" + (f" (and {more} more)" if more else "")
