"""What the report says of a run's prediction, whatever is in its file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxscale.telemetry.metrics import MetricsLog
from jaxscale.telemetry.report import write_report

PREDICTION = {
    "plan": "fsdp=8, remat=<full>",
    "cluster": "h100:8",
    "since_step": 0,
    "step_seconds": 0.5,
    "tokens_per_step": 1_000_000,
    "peak_bytes": 40 * 2**30,
    "time_seconds": {"mlp": 0.3, "attention": 0.2, "pipeline bubble": 0.0},
    "memory_bytes": {"parameters": 30 * 2**30, "logits": 10 * 2**30},
    "notes": ["a note"],
}


def report(
    folder: Path,
    prediction: Any,
    times: tuple[float, ...] = (50.0, 2.0, 0.8, 0.8, 0.8),
    **more: float,
) -> str:
    log = MetricsLog(folder / "metrics.jsonl")
    for step, seconds in enumerate(times, start=1):
        log.write({"step": step, "loss": 2.0, "step_seconds": seconds, "mfu": 0.25, **more})
    log.close()
    text = prediction if isinstance(prediction, str) else json.dumps(prediction)
    (folder / "prediction.json").write_text(text)
    return write_report(folder).read_text()


def rows(page: str) -> dict[str, list[str]]:
    """Header -> cells of every table row in the section."""
    section = page.split("<h2 id='prediction'>")[1].split("</section>", maxsplit=1)[0]
    found = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", section)
    return {name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in found}


def test_predicted_stands_beside_measured(tmp_path: Path) -> None:
    """A step takes 0.8 s instead of 0.5: 1/1.6 of the tokens and of the utilization, which was to be 0.25 x 1.6."""
    page = report(tmp_path, PREDICTION, device_memory_peak_bytes=50 * 2**30)
    found = rows(page)
    assert found["Step time"] == ["500 ms", "800 ms", "1.60"]
    assert found["Tokens per second"] == ["2M", "1.25M", "0.62"]
    assert found["MFU"] == ["40.0%", "25.0%", "0.62"]
    assert found["Peak memory of a device"] == ["40 GiB", "50 GiB", "1.25"]
    assert "fsdp=8, remat=&lt;full&gt; on h100:8. a note." in page


def test_components_are_predicted_only(tmp_path: Path) -> None:
    page = report(tmp_path, PREDICTION)
    found = rows(page)
    assert found["mlp"] == ["300 ms", "60.0%"]
    assert found["logits"] == ["10 GiB", "25.0%"]
    assert "pipeline bubble" not in found
    assert "no profile is read: not measured" in page


def test_what_nothing_counts_is_left_open(tmp_path: Path) -> None:
    """CPU devices count no memory; a run of one window has no steady state."""
    (tmp_path / "cpu").mkdir()
    assert rows(report(tmp_path / "cpu", PREDICTION))["Peak memory of a device"] == [
        "40 GiB",
        "-",
        "-",
    ]
    (tmp_path / "short").mkdir()
    found = rows(report(tmp_path / "short", PREDICTION, (50.0,)))
    assert found["Step time"] == ["500 ms", "-", "-"]
    assert "MFU" not in found


@pytest.mark.parametrize(
    "prediction",
    ["", "{", "[1]", {}, {"step_seconds": "fast"}, {"step_seconds": 0, "tokens_per_step": 5}],
)
def test_a_run_without_a_readable_prediction_has_no_such_section(
    tmp_path: Path, prediction: Any
) -> None:
    assert "id='prediction'" not in report(tmp_path, prediction)


def test_half_a_prediction_shows_what_it_has(tmp_path: Path) -> None:
    page = report(
        tmp_path,
        {
            "step_seconds": 1.0,
            "tokens_per_step": 8,
            "since_step": None,
            "notes": 5,
            "time_seconds": 3,
        },
    )
    assert rows(page)["Step time"] == ["1 s", "800 ms", "0.80"]
