"""What follows from how the processes of an attempt have ended."""

import pytest

from jaxscale.launch.members import Ended
from jaxscale.launch.restarts import Attempt, Policy, Verdict, judge

POLICY = Policy(max_restarts=3, crash_loop=3, first_delay=1.0, longest_delay=5.0)


def attempt(*statuses: int, checkpoint: int = 0, step: int = 0, message: str = "") -> Attempt:
    ended = (Ended(str(i), status, message=message) for i, status in enumerate(statuses))
    return Attempt(tuple(ended), checkpoint, step)


def test_all_done_is_done() -> None:
    assert judge([attempt(0, 0)], POLICY) == Verdict(0, "")


def test_a_user_s_mistake_is_not_tried_again_and_said_in_its_own_words() -> None:
    ended = (Ended("0", -9, stopped=True), Ended("1", 2, message="no such file"))
    assert judge([Attempt(ended)], POLICY) == Verdict(2, "no such file")


def test_preemption_is_started_again() -> None:
    verdict = judge([attempt(75, 75, checkpoint=40)], POLICY)
    assert (verdict.status, verdict.delay) == (None, 1.0)
    assert "restart 1 of 3 from step 40 in 1 s" in verdict.reason


@pytest.mark.parametrize("status", [1, 76, -9, -11])
def test_failures_are_started_again(status: int) -> None:
    assert judge([attempt(0, status)], POLICY).status is None


def test_those_that_were_ended_are_not_to_blame() -> None:
    ended = (Ended("0", -9, stopped=True), Ended("1", -11))
    verdict = judge([Attempt(ended)], POLICY)
    assert verdict.reason.startswith("process 1 was killed by SIGSEGV;")


def test_pauses_double_up_to_the_longest_and_begin_anew_with_a_checkpoint() -> None:
    policy = Policy(max_restarts=9, crash_loop=99, first_delay=1.0, longest_delay=5.0)
    attempts = [attempt(1, step=i) for i in range(4)]
    delays = [judge(attempts[: i + 1], policy).delay for i in range(4)]
    assert delays == [1.0, 2.0, 4.0, 5.0]
    assert judge([*attempts, attempt(1, checkpoint=10, step=12)], policy).delay == 1.0


def test_restarts_in_vain_are_limited() -> None:
    attempts = [attempt(1, step=i) for i in range(4)]
    assert judge(attempts[:3], POLICY).status is None
    last = judge(attempts, POLICY)
    assert last.status == 1
    assert "given up after 3 restarts without a newer checkpoint" in last.reason


def test_a_limit_of_no_restarts() -> None:
    assert judge([attempt(1)], Policy(max_restarts=0)).status == 1


def test_preemptions_that_save_nothing_are_limited_too_and_leave_their_status() -> None:
    assert judge([attempt(75, 75)] * 4, POLICY).status == 75


def test_failures_at_the_same_step_are_a_crash_loop() -> None:
    """Two at step 7 with one at step 8 between them are none; the third at step 7 is."""
    same = attempt(1, 1, checkpoint=5, step=7, message="nan\nand more")
    other = attempt(1, 1, checkpoint=5, step=8)
    policy = Policy(max_restarts=9, crash_loop=3)
    assert judge([same, other, same], policy).status is None
    last = judge([same, other, same, same], policy)
    assert last.status == 1
    assert last.reason.startswith(
        "crash loop: 3 attempts failed at step 7, the last one because process 0 ended with status 1: nan (and 1 more)"
    )


def test_progress_between_failures_is_no_crash_loop() -> None:
    attempts = [attempt(1, checkpoint=c, step=7) for c in (1, 2, 3, 4)]
    assert judge(attempts, POLICY).status is None


@pytest.mark.parametrize(
    ("statuses", "expected"), [((75, 75), 75), ((0, 75), 75), ((-15, -9), 143), ((0, 0), 0)]
)
def test_when_the_launcher_was_told_to_end_nothing_is_started_again(
    statuses: tuple[int, ...], expected: int
) -> None:
    assert judge([attempt(*statuses)], POLICY, asked=15).status == expected
