"""Trackers: real TensorBoard files, clear refusals, and failures that stay the tracker's own."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxscale.errors import UserError
from jaxscale.telemetry.tracker_backends import BACKENDS, Run, _flat, _kept_id
from jaxscale.telemetry.trackers import GuardedTracker, make_trackers

CONFIG = {"training": {"steps": 10}, "plan": "auto"}


def make(names, tmp_path, **options):
    return make_trackers(names, run_dir=tmp_path, config=CONFIG, run_name="test", **options)


def read_events(tmp_path) -> EventAccumulator:
    return EventAccumulator(str(tmp_path / "tensorboard")).Reload()


def test_tensorboard_reads_what_was_logged(tmp_path) -> None:
    tracker = make(["tensorboard"], tmp_path)
    tracker.log(5, {"step": 5, "loss": 2.5, "grad_norm": math.nan, "eval_bits_per_byte": None})
    tracker.text(5, "sample", "once <b>upon</b>")
    tracker.close()
    events = read_events(tmp_path)
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 2.5)]
    [sample] = events.Tensors("sample/text_summary")
    assert b"once <b>upon</b>" in sample.tensor_proto.string_val[0]


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path) -> None:
    first = make(["tensorboard"], tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"loss": 1.0})
    first.close()
    resumed = make(["tensorboard"], tmp_path, start_step=1)
    resumed.log(2, {"loss": 2.0})
    resumed.close()
    losses = [(event.step, event.value) for event in read_events(tmp_path).Scalars("loss")]
    assert losses == [(1, 1.0), (2, 2.0)]


def test_no_trackers_is_a_tracker_too(tmp_path) -> None:
    tracker = make([], tmp_path)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_gets_the_nearest_one(tmp_path) -> None:
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        make(["tensorbord"], tmp_path)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "opentelemetry"])
def test_a_missing_package_names_its_extra_before_anything_is_written(
    name, tmp_path, monkeypatch
) -> None:
    # The way Python marks a module as not importable, whether it is installed or not.
    monkeypatch.setitem(__import__("sys").modules, BACKENDS[name].package, None)
    with pytest.raises(UserError, match=rf"pip install 'jaxscale\[{name}\]'"):
        make(["tensorboard", name], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_cannot_start_is_an_error_before_training(tmp_path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the directory goes")
    with pytest.raises(UserError, match="tracker 'tensorboard' did not start"):
        make(["tensorboard"], tmp_path)


class Unreachable:
    """Fails as a server does that has gone away."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error
        self.calls: list[int] = []

    def log(self, step, values) -> None:
        assert "step" not in values
        self._call(step)

    def text(self, step, name, text) -> None:
        assert name
        assert text
        self._call(step)

    def close(self) -> None:
        self._call(-1)

    def _call(self, step: int) -> None:
        self.calls.append(step)
        if self.error:
            raise self.error


def test_a_server_that_goes_away_is_mentioned_once_and_left_alone_for_a_minute() -> None:
    now, warnings = [0.0], []
    server = Unreachable(ConnectionError("no route"))
    tracker = GuardedTracker(
        server, name="mlflow", failures=(OSError,), warn=warnings.append, clock=lambda: now[0]
    )
    for step in range(5):
        tracker.log(step, {"loss": 1.0})
    assert server.calls == [0]
    assert len(warnings) == 1
    assert "ConnectionError: no route" in warnings[0]
    now[0], server.error = 61.0, None
    tracker.log(5, {"loss": 1.0})
    tracker.log(6, {"loss": 1.0})
    tracker.close()
    assert server.calls == [0, 5, 6, -1]
    assert warnings[1:] == ["mlflow: 5 records were not sent; all are in metrics.jsonl"]


def test_a_bug_is_not_taken_for_a_network_failure() -> None:
    tracker = GuardedTracker(Unreachable(TypeError("bug")), name="mlflow", failures=(OSError,))
    with pytest.raises(TypeError, match="bug"):
        tracker.log(1, {"loss": 1.0})


def test_a_run_keeps_its_identity_when_it_resumes(tmp_path) -> None:
    run = Run(tmp_path, "test", CONFIG, 0)
    assert _kept_id(run, "wandb", lambda: "first") == "first"
    assert _kept_id(run, "mlflow", lambda: "other") == "other"
    assert _kept_id(run, "wandb", lambda: pytest.fail("made again")) == "first"
    assert json.loads((tmp_path / "trackers.json").read_text()) == {
        "wandb": "first",
        "mlflow": "other",
    }


def test_nested_configuration_is_flattened_for_tables() -> None:
    assert list(_flat(CONFIG)) == [("training.steps", 10), ("plan", "auto")]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_optional_tracker_runs_offline_and_resumes(name, tmp_path, monkeypatch) -> None:
    """The real libraries, where they are installed: none needs a server for this."""
    pytest.importorskip(name, reason=f"extra {name!r} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    warnings: list[str] = []
    for start in (0, 2):
        tracker = make([name], tmp_path / "run", start_step=start, warn=warnings.append)
        tracker.log(start + 1, {"loss": 2.5})
        tracker.text(start + 1, "sample", "once <b>upon</b>")
        tracker.close()
    assert warnings == []
