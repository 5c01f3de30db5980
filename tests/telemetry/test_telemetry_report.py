"""The report of a run that finished, of one that did not, and of text that would rather be code."""

import json
import math
import re
import subprocess
import sys

import pytest

from jaxscale.errors import UserError
from jaxscale.telemetry.metrics import MetricsLog
from jaxscale.telemetry.report import write_report
from jaxscale.telemetry.report.charts import Chart, Line, fit_axes
from jaxscale.telemetry.report.page import embedded_json
from jaxscale.telemetry.report.run import load_run
from jaxscale.telemetry.report.series import (
    bucket_means,
    envelope,
    evenly_chosen,
    linear_ticks,
    log_ticks,
    smoothed,
)

HOSTILE = "</script><script>document.title = 'owned'</script> & <b>bold</b>"


def log_run(directory, *, steps: int, every: int = 1, **more) -> None:
    directory.mkdir(exist_ok=True)
    log = MetricsLog(directory / "metrics.jsonl")
    for step in range(every, steps + 1, every):
        log.write({"step": step, "loss": 10 / math.sqrt(step), "step_seconds": 2.0} | more)
    log.close()


def report_of(directory) -> str:
    return write_report(directory).read_text()


def tiles_of(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", page))


def test_headline_numbers(tmp_path) -> None:
    log_run(tmp_path, steps=16, every=4, tokens_per_second=1e5, mfu=0.4, tokens=2_000_000)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 8, "eval_loss": 3.0, "eval_bits_per_byte": 1.1, "eval_perplexity": 20.0855})
    log.write({"step": 16, "eval_loss": 3.5, "eval_bits_per_byte": 1.2, "eval_perplexity": 33.1155})
    (tmp_path / "summary.json").write_text(
        '{"parameters": 1235814400, "mfu_convention": "as PaLM"}'
    )
    page = report_of(tmp_path)
    # 16 steps of 2 s are 32 s; 10 / sqrt(16) is 2.5.
    assert tiles_of(page) == {
        "Training loss": "2.5000",
        "Evaluation loss": "3.5000",
        "Bits per byte": "1.2000",
        "Tokens per second": "100k",
        "MFU": "40.0%",
        "Wall time": "0:00:32",
        "Tokens": "2M",
        "Parameters": "1.24B",
    }
    assert "lowest 3.0000 at 8" in page
    assert "as PaLM" in page
    assert "33.1155" in page


def test_a_run_that_died_before_its_first_log_has_a_report(tmp_path) -> None:
    page = report_of(tmp_path)
    assert "No metrics: the run ended before its first log." in page
    assert "<svg" not in page


def test_torn_and_missing_pieces_are_left_out(tmp_path) -> None:
    log_run(tmp_path, steps=2)
    (tmp_path / "summary.json").write_text('{"parame')
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "notes.txt").write_text("not a sample")
    page = report_of(tmp_path)
    assert 'aria-labelledby="configuration"' not in page
    assert "not a sample" not in page
    assert page.count("<figure") == 2  # Loss and time of a step.


def test_a_run_cut_short_says_how_far_it_came(tmp_path) -> None:
    log_run(tmp_path, steps=3)
    (tmp_path / "config.yaml").write_text("training:\n  steps: 10\n")
    assert "Step 3 of 10" in report_of(tmp_path)


def test_a_diverged_run_says_where(tmp_path) -> None:
    log_run(tmp_path, steps=3)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 4, "loss": math.nan})
    assert "Loss not finite at step 4" in report_of(tmp_path)


def test_text_of_the_run_never_becomes_markup(tmp_path) -> None:
    run = tmp_path / "<b>run"
    log_run(run, steps=2)
    for name in ("config.yaml", "plan.yaml"):
        (run / name).write_text(f'key: "{HOSTILE}"\n')
    (run / "environment.json").write_text(f'{{"{HOSTILE}": ["{HOSTILE}"]}}')
    (run / "samples").mkdir()
    (run / "samples" / "1.txt").write_text(HOSTILE)
    page = report_of(run)
    assert "<script>document" not in page
    assert "<b>bold" not in page
    assert "<b>run" not in page
    # Sample, configuration, plan, and twice in the environment.
    assert page.count("&lt;script&gt;document") == 5
    assert len(re.findall("<script", page)) == 2  # The data and our own.


def test_embedded_data_cannot_end_its_element() -> None:
    embedded = embedded_json([HOSTILE])
    assert "<" not in embedded
    assert json.loads(embedded) == [HOSTILE]


def test_nothing_in_the_page_leads_outside(tmp_path) -> None:
    log_run(tmp_path, steps=2)
    page = report_of(tmp_path)
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|https?:""", page)


def test_a_hundred_thousand_steps_stay_under_two_megabytes(tmp_path) -> None:
    log_run(
        tmp_path, steps=100_000, grad_norm=1.0, learning_rate=0.1, tokens_per_second=1.0, mfu=0.1
    )
    assert write_report(tmp_path).stat().st_size < 2_000_000


def test_an_absent_run_is_the_users_mistake(tmp_path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        write_report(tmp_path / "nowhere")


def test_report_and_metrics_start_without_jax_or_numpy() -> None:
    modules = "metrics, mfu, progress, report, trackers"
    check = f"import sys; from jaxscale.telemetry import {modules}; print({{'jax', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_thinning_keeps_every_spike() -> None:
    points = [(step, 1.0) for step in range(10_000)]
    points[7_777] = (7_777, 50.0)
    points[3] = (3, -50.0)
    kept = envelope(points, buckets=100)
    assert len(kept) <= 200
    assert {(3, -50.0), (7_777, 50.0)} <= set(kept)
    assert kept == sorted(kept)


def test_thinning_by_means_keeps_the_total() -> None:
    points = [(step, float(step % 7)) for step in range(1_000)]
    means = bucket_means(points, buckets=100)
    # Buckets of equal size: the mean of means is the mean.
    assert sum(v for _, v in means) / 100 == pytest.approx(sum(v for _, v in points) / 1_000)
    assert means[-1][0] == 999


def test_smoothing_does_not_shift_a_straight_line() -> None:
    line = [(step, 3.0 * step) for step in range(500)]
    assert [v for _, v in smoothed(line)] == pytest.approx([v for _, v in line])


def test_smoothing_averages_noise_away() -> None:
    noise = [(step, float((-1) ** step)) for step in range(1_000)]
    # Windows of 21 alternating values: one is left over.
    assert max(abs(v) for _, v in smoothed(noise)[10:-10]) == pytest.approx(1 / 21)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.93, 1.21, [1.0, 1.1, 1.2]), (0, 3e-4, [0, 1e-4, 2e-4, 3e-4])],
)
def test_ticks_are_round_numbers_inside(low, high, ticks) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


def test_logarithmic_ticks_are_round_numbers_inside() -> None:
    assert log_ticks(3.1, 10.6) == pytest.approx([3.5, 4, 5, 6, 8, 10])
    assert log_ticks(0.01, 1000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])


@pytest.mark.parametrize(
    "points", [[(5, 2.0)], [(0, 0.0)], [(1, 3.0), (2, 3.0)], [(1, -1.0), (9, 1.0)]]
)
def test_every_point_lies_inside_its_axes(points) -> None:
    axes = fit_axes(Chart("any", [Line("line", points, 1)], "compact"))
    assert all(0 <= axes.across(step) <= 1 and 0 < axes.up(value) < 1 for step, value in points)
    assert len(axes.ticks()) >= 2


def test_samples_are_in_order_of_step(tmp_path) -> None:
    (tmp_path / "samples").mkdir()
    for step in (1000, 20, 300):
        (tmp_path / "samples" / f"{step}.txt").write_text(str(step))
    assert [sample.step for sample in load_run(tmp_path).samples] == [20, 300, 1000]


def test_choosing_evenly_keeps_both_ends() -> None:
    assert evenly_chosen(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert evenly_chosen([1, 2], 5) == [1, 2]
