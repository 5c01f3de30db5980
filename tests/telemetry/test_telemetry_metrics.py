"""metrics.jsonl is valid JSON whatever happens to the run."""

import json
import math

import pytest

from jaxscale.errors import UserError
from jaxscale.telemetry.metrics import MetricsLog, read


def test_records_come_back_as_written(tmp_path) -> None:
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    log.write({"step": 1, "loss": 2.5})
    log.write({"step": 1, "eval_loss": 2.0, "eval_bits_per_byte": None})
    # Before closing: a killed process must not lose what it logged.
    assert read(log.path) == [
        {"step": 1, "loss": 2.5},
        {"step": 1, "eval_loss": 2.0, "eval_bits_per_byte": None},
    ]
    log.close()


def test_what_json_lacks_is_null_and_named(tmp_path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 3, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.1})
    log.close()

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    assert json.loads(log.path.read_text(), parse_constant=refuse) == {
        "step": 3,
        "loss": None,
        "grad_norm": None,
        "learning_rate": 0.1,
        "nonfinite": ["loss", "grad_norm"],
    }


def test_resuming_drops_what_the_checkpoint_does_not_know(tmp_path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0})
    log.write({"step": 20, "eval_loss": 1.0})
    log.write({"step": 30, "eval_loss": 1.0})
    log.truncate_after(20)
    log.write({"step": 30, "loss": 2.0})
    log.close()
    assert [(r["step"], r.get("loss")) for r in read(log.path)] == [
        (10, 1.0),
        (20, 1.0),
        (20, None),
        (30, 2.0),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "torn", ['{"step": 2, "lo', '{"step": 2}', '{"step": 2, "name": "caf\udcc3']
)
def test_a_line_cut_off_by_a_crash_is_left_out_and_not_glued_to_the_next(tmp_path, torn) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn.encode("utf-8", "surrogateescape"))
    assert read(path) == [{"step": 1}]
    log = MetricsLog(path)
    log.write({"step": 2, "loss": 1.0})
    log.close()
    assert read(path) == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_a_broken_line_elsewhere_is_named(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read(path)
    path.write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="integer step"):
        read(path)


def test_a_run_that_never_logged_has_no_records(tmp_path) -> None:
    assert read(tmp_path / "metrics.jsonl") == []
