"""Where a run's time went, by histories whose answers can be said beforehand."""

import contextlib
import itertools
import json

import pytest

from jaxscale.telemetry.goodput import goodput
from jaxscale.telemetry.journal import Event, Journal, parse_event, read_events
from jaxscale.telemetry.ledger import CHECKPOINT, DATA_WAIT, EVALUATION, STARTUP, STEP, TimeLedger


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def line(time, kind, done=0, /, born=None, **seconds) -> Event:
    return Event(time, kind, done, seconds, "step", {} if born is None else {"born": born})


def nonzero(found) -> dict[str, float]:
    return {name: round(value, 9) for name, value in found.seconds.items() if value}


# Born at 100; 10 s of start-up, 20 s of compiling, then ten steps of 5 s with 2 s of waiting for data in all.
UNDISTURBED = [
    line(105, "start", born=100, startup=5),
    line(110, "resume", 0, startup=10),
    line(135, "progress", 1, startup=10, compile=20, step=5),
    line(182, "end", 10, startup=10, compile=20, step=50, data_wait=2),
]


def test_nothing_told_yet_has_no_account() -> None:
    assert goodput([]) is None
    assert goodput(UNDISTURBED[1:]) is None  # The line that says when it began is lost.


def test_an_undisturbed_run() -> None:
    found = goodput(UNDISTURBED)
    assert found.wall_seconds == 182 - 100
    assert nonzero(found) == {"useful": 50, "startup": 10, "compile": 20, "data_wait": 2}
    assert found.ratio == 50 / 82
    assert (found.num_processes, found.lost_steps) == (1, 0)
    assert found.first_step_seconds == 35  # 10 + 20 + 5.


def killed_at_step_10_resumed_from(step: int) -> list[Event]:
    """30 s after its last line the next process is born, and makes the steps up to 12."""
    return [
        *UNDISTURBED[:3],
        line(182, "progress", 10, startup=10, compile=20, step=50, data_wait=2),
        line(213, "start", born=212, startup=1),
        line(218, "resume", step, startup=6),
        line(227, "progress", step + 1, startup=6, compile=4, step=5),
        line(400, "progress", 12, startup=6, compile=4, step=5 * (12 - step)),
    ]


@pytest.mark.parametrize("step", [0, 4, 9, 10])
def test_steps_made_again_are_lost_where_they_were_made_first(step) -> None:
    """The first process made step 1 in 5 s and nine more in 45 s."""
    found = goodput(killed_at_step_10_resumed_from(step))
    again = 5.0 * (10 - step)
    assert nonzero(found) == {
        "useful": 5 * 12,
        "startup": 16,
        "compile": 24,
        "data_wait": 2,
        "restart": 30,
        **({"lost": again} if again else {}),
    }
    assert found.lost_steps == 10 - step
    assert found.first_step_seconds == 6 + 4 + 5
    assert found.wall_seconds == pytest.approx(sum(found.seconds.values()))


def test_a_crash_loop_counts_each_step_once() -> None:
    """Three processes from step 0 make 6, 8 and 2 steps of 1 s; a fourth goes on from 2 to 9."""
    history = []
    for born, start, last in ((0, 0, 6), (10, 0, 8), (20, 0, 2), (30, 2, 9)):
        history += [
            line(born, "start", born=born),
            line(born, "resume", start),
            line(born + last - start, "progress", last, step=last - start),
        ]
    found = goodput(history)
    assert found.seconds["useful"] == 9  # Steps 1 and 2 of the third, 3 to 9 of the fourth.
    assert (found.seconds["lost"], found.lost_steps) == (14, 14)
    assert found.seconds["restart"] == 4 + 2 + 8
    assert found.wall_seconds == 37


def test_a_step_that_was_made_three_times_counts_where_it_was_made_last() -> None:
    """10 steps; gone on behind 8, to 9; that checkpoint is damaged, so gone on behind 4, to 12. A second a step."""
    history = []
    for born, start, last in ((0, 0, 10), (20, 8, 9), (30, 4, 12)):
        history += [
            line(born, "start", born=born),
            line(born, "resume", start),
            line(born + last - start, "progress", last, step=last - start),
        ]
    found = goodput(history)
    # 1 to 4 of the first, none of the second, 5 to 12 of the third.
    assert found.seconds["useful"] == 4 + 8
    assert (found.seconds["lost"], found.lost_steps) == (6 + 1, 7)


def test_going_back_within_a_process_loses_the_steps_between() -> None:
    found = goodput(
        [
            line(0, "start", born=0),
            line(0, "resume", 0),
            line(20, "progress", 20, step=20),
            line(25, "resume", 10, step=21, checkpoint=4),
            line(40, "end", 25, step=36, checkpoint=4),
        ]
    )
    # Ten steps stay; ten and the second of the one that went wrong are lost; fifteen are made behind them.
    assert nonzero(found) == {"useful": 10 + 15, "lost": 10 + 1, "checkpoint": 4}
    assert found.lost_steps == 10


def test_a_process_that_never_finished_a_step_made_nothing_useful() -> None:
    history = [line(0, "start", born=0), line(5, "resume", 0, startup=5)]
    history.append(line(12, "end", 0, startup=5, step=7))
    found = goodput(history)
    assert nonzero(found) == {"startup": 5, "lost": 7}
    assert (found.ratio, found.first_step_seconds) == (0, None)


def test_two_runs_in_one_process_share_no_time() -> None:
    """A notebook of age 0 trains until 82 and again at once: what came before the second is not its start-up."""
    again = [
        line(190, "start", born=100, startup=90),
        line(190, "resume", 10, startup=90),
        line(195, "end", 11, startup=90, step=5),
    ]
    found = goodput([*UNDISTURBED, *again])
    assert found.wall_seconds == 195 - 100
    assert found.seconds["startup"] == 10 + 8


def test_every_second_of_a_process_has_one_name() -> None:
    clock = Clock()
    ledger = TimeLedger(age=3.0, clock=clock)
    clock.advance(2)
    ledger.turn_to(STEP)
    clock.advance(10)
    with ledger.span(EVALUATION):
        clock.advance(4)
        with ledger.span(DATA_WAIT):
            clock.advance(1)
        clock.advance(4)
    with contextlib.suppress(KeyError), ledger.span(CHECKPOINT):
        clock.advance(7)
        raise KeyError
    clock.advance(1)
    booked = {STARTUP: 5, STEP: 11, EVALUATION: 8, DATA_WAIT: 1, CHECKPOINT: 7}
    assert ledger.seconds() == booked
    assert sum(booked.values()) == clock.now + 3


def test_only_the_first_call_compiles() -> None:
    clock = Clock()
    ledger = TimeLedger(clock=clock)
    ledger.turn_to(STEP)
    call = ledger.first_call("compile", clock.advance)
    for seconds in (30, 1, 1):
        call(seconds)
    assert ledger.seconds() == {"compile": 30, "step": 2}


def journal(folder, clock, **options) -> Journal:
    return Journal(
        folder, planned_steps=100, clock=clock, ledger=TimeLedger(clock=clock), **options
    )


def test_a_diary_is_read_back_as_the_account_of_what_was_done(tmp_path) -> None:
    clock = Clock(1000.0)
    with journal(tmp_path / "run", clock) as diary:
        clock.advance(6)
        diary.resume(0)
        diary.ledger.turn_to(STEP)
        for done in range(1, 101):
            clock.advance(0.5)
            diary.step(done)
        diary.ended("finished")
    events = read_events(tmp_path / "run" / "events.jsonl")
    found = goodput(events)
    assert found.seconds["useful"] == 50
    assert found.seconds["startup"] == 6
    assert events[-1].facts["status"] == "finished"
    assert events[0].facts["planned_steps"] == 100
    # Every step is told of within a second, and not every step is.
    told = [event.time for event in events if event.kind == "progress"]
    assert max(b - a for a, b in itertools.pairwise(told)) <= 1.5
    assert len(told) < 60


def test_a_run_of_days_is_told_in_few_lines_and_loses_at_most_a_minute(tmp_path) -> None:
    clock = Clock()
    diary = journal(tmp_path, clock)
    diary.resume(0)
    for done in range(1, 20_001):
        clock.advance(12)
        diary.step(done)
    events = read_events(tmp_path / "events.jsonl")
    gaps = [b.time - a.time for a, b in itertools.pairwise(events)]
    assert max(gaps) <= 60 + 12
    # 12 s each for 12,000 s, then a thousandth of an age that grows fivefold, then each minute of 50 hours.
    assert len(events) < 1000 + 1700 + 50 * 60


def test_a_start_that_fails_leaves_no_directory(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such tokenizer"), journal(tmp_path / "run", Clock()):
        raise ValueError("no such tokenizer")
    assert not (tmp_path / "run").exists()


class Asked(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("loss is nan"), "failed"), (Asked(), "preempted")]
)
def test_the_last_line_says_how_it_ended(tmp_path, error, status) -> None:
    with pytest.raises(type(error)), journal(tmp_path, Clock(), preemption=Asked):
        raise error
    last = read_events(tmp_path / "events.jsonl")[-1]
    assert last.kind == "end"
    assert last.facts["status"] == status
    assert last.facts.get("reason") == ("ValueError: loss is nan" if status == "failed" else None)


def test_a_line_half_written_is_left_out_and_the_next_one_is_whole(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    journal(tmp_path, Clock()).resume(3)
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:40])
    assert [event.kind for event in read_events(path)] == ["start", "resume"]
    journal(tmp_path, Clock()).resume(5)
    assert [event.step for event in read_events(path)] == [0, 3, 0, 5]


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"seconds": {"a": "x"}}', "\x00", "1"])
def test_what_is_no_event_is_none(text) -> None:
    assert parse_event(text) is None


def test_a_disk_that_refuses_the_diary_does_not_end_the_run(tmp_path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    diary = journal(tmp_path, Clock())
    diary.resume(0)
    diary.step(1)


def test_one_process_alone_writes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    diary = journal(None, Clock())
    diary.resume(0)
    diary.step(1)
    assert list(tmp_path.iterdir()) == []


def test_lines_are_json_that_other_tools_read(tmp_path) -> None:
    diary = journal(tmp_path, Clock())
    diary.resume(7)
    diary.note(saved=7)
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["step"], last["saved"]) == ("progress", 7, 7)
