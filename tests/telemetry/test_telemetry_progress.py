"""What is shown while training, in a terminal and in a log file."""

import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from jaxscale.telemetry.format import bytes_text, compact, duration, seconds_text, sparkline
from jaxscale.telemetry.progress import LiveProgress, PlainProgress, make_progress

RECORD = {
    "step": 250,
    "loss": 2.34567,
    "grad_norm": 0.4123,
    "learning_rate": 3e-4,
    "tokens_per_second": 123_456.0,
    "mfu": 0.4123,
    "step_seconds": 2.0,
}


def console(*, terminal: bool, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def test_a_pipe_gets_one_plain_line_a_record() -> None:
    out = console(terminal=False, width=20)  # Narrow: a log must not be wrapped.
    progress = make_progress(total_steps=1000, console=out)
    assert isinstance(progress, PlainProgress)
    progress.update(RECORD)
    progress.note("checkpoint [saved] at step 250")
    progress.close()
    # 750 steps of 2 s are 25 minutes.
    assert out.file.getvalue() == (
        "step 250/1000  loss 2.3457  grad 0.41  lr 3.0e-04  tok/s 123k  MFU 41.2%  s/step 2"
        "  0:25:00 left\ncheckpoint [saved] at step 250\n"
    )


def test_an_evaluation_line_shows_what_it_has() -> None:
    out = console(terminal=False)
    make_progress(total_steps=10, console=out).update({"step": 5, "eval_loss": 2.0})
    assert out.file.getvalue() == "step 5/10  eval 2.0000\n"


@pytest.mark.parametrize(
    "record", [{"step": 5, "loss": None, "nonfinite": ["loss"]}, {"step": 5, "loss": math.nan}]
)
def test_a_loss_that_is_not_finite_is_shown(record) -> None:
    out = console(terminal=False)
    make_progress(total_steps=10, console=out).update(record)
    assert out.file.getvalue() == "step 5/10  loss nan\n"


def lines_of(progress: LiveProgress, out: Console) -> list[str]:
    with out.capture() as captured:
        out.print(progress._render())
    return captured.get().splitlines()


def test_the_live_display_fits_eighty_columns() -> None:
    out = console(terminal=True)
    progress = make_progress(total_steps=1_000_000, title="a-rather-long-run-name", console=out)
    assert isinstance(progress, LiveProgress)
    for step in range(100):
        full = RECORD | {
            "step": 900_000 + step,
            "loss": 10.0 - step / 100,
            "data_wait_seconds": 0.01,
        }
        progress.update(full)
    progress.update({"step": 900_099, "eval_loss": 12.3456})
    progress.close()  # Else it would draw itself again around what is captured.
    bar, learning, speed = lines_of(progress, out)
    assert max(cell_len(line) for line in (bar, learning, speed)) <= 80
    assert "900,099/1,000,000  90.0%" in bar
    assert bar.rstrip().endswith("left")
    # The training loss stays when an evaluation comes; falling losses draw falling bars.
    assert learning.startswith("loss 9.0100  eval 12.3456  grad 0.41  lr 3.0e-04  █")
    assert learning.rstrip().endswith("▁")
    assert "tok/s 123k  MFU 41.2%  s/step 2  wait 0.01" in speed


def test_notes_stay_above_the_bar_and_the_last_state_remains() -> None:
    out = console(terminal=True)
    progress = make_progress(total_steps=250, console=out)
    progress.note("checkpoint [saved]")
    progress.update(RECORD)
    progress.close()
    shown = out.file.getvalue()
    assert "checkpoint [saved]" in shown
    assert "done" in shown[shown.rindex("250/250") :]


def test_numbers_as_people_read_them() -> None:
    assert [compact(v) for v in (0, 0.25, 999, 999.6, 12_345, 7e9, 1.5e13)] == [
        "0", "0.25", "999", "1k", "12.3k", "7B", "15T",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 59.6, 3_723, 4 * 86_400 + 61)] == [
        "0:00:00", "0:01:00", "1:02:03", "4d 0:01:01",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (0.0123, 2.5)] == ["12.3 ms", "2.5 s"]
    assert [bytes_text(b) for b in (10, 3 * 2**29)] == ["10 B", "1.5 GiB"]


def test_sparkline_shows_the_course() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], width=2) == "▁█"
    assert sparkline([3, 3], width=8) == "▁▁"
    assert sparkline([1, math.nan], width=8) == ""
