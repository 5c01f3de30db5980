"""`jaxscale status` on a run that was trained, and on what is none."""

import json
from pathlib import Path

import pytest
import yaml
from cli_cases import call, succeed

from jaxscale.checkpoint.layout import CHECKSUMS_FILE
from jaxscale.checkpoint.places import open_place
from jaxscale.launch.run import progress_of
from jaxscale.telemetry.saved import newest_checkpoint


def test_a_finished_run(trained: Path) -> None:
    found = json.loads(succeed("status", trained, "--json"))
    assert (found["state"], found["step"], found["planned_steps"]) == ("finished", 200, 200)
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert found["loss"] == [r["loss"] for r in records if "loss" in r][-1]
    assert found["checkpoint"]["step"] == 200
    goodput = found["goodput"]
    assert sum(goodput["seconds"].values()) == pytest.approx(goodput["wall_seconds"])
    assert {kind for kind, seconds in goodput["seconds"].items() if seconds} >= {
        *("useful", "startup", "compile", "checkpoint", "evaluation")
    }
    assert (goodput["seconds"]["lost"], goodput["lost_steps"]) == (0, 0)
    summary = json.loads((trained / "summary.json").read_text())
    # The summary clocks the step a moment behind the diary, which keeps milliseconds.
    assert -0.001 <= summary["first_step_seconds"] - goodput["first_step_seconds"] < 10


def test_words_for_people(trained: Path) -> None:
    out = succeed("status", trained)
    assert out.startswith(f"{trained.name}  finished  made its last step\n")
    assert "200 of 200 (100.0%)" in out
    assert "goodput" in out


def test_what_is_no_run(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "holds no run"), (tmp_path / "none", "no run directory")):
        answer = call("status", path)
        assert answer.status == 2
        assert words in answer.err


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    answer = call("status", tmp_path)
    assert answer.status == 2
    assert "line 2" in answer.err


def run_with_checkpoints_in(directory: str, run: Path) -> Path:
    """A run directory that says where its checkpoints are."""
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"checkpoint": {"directory": directory}}))
    (run / "metrics.jsonl").write_text('{"step": 12, "loss": 2.5}\n')
    return run


@pytest.mark.parametrize("store", ["s3", "gs"], indirect=True)
def test_checkpoints_in_a_store_are_seen(store: str, tmp_path: Path) -> None:
    """The newest that is complete: one that is being written has no checksums yet."""
    run = run_with_checkpoints_in(store, tmp_path / "run")
    for name in (f"4/{CHECKSUMS_FILE}", f"10/{CHECKSUMS_FILE}", "11/metadata.json", "notes/x"):
        place = open_place(store) / name
        place.fs.pipe_file(place.path, b"{}")
    found = json.loads(succeed("status", run, "--json"))
    assert found["checkpoint"]["step"] == 10
    assert 0 <= found["checkpoint"]["age_seconds"] < 120
    assert found["checkpoints_unseen"] is None
    if store.startswith("s3"):
        assert progress_of(run) == (10, 12)


@pytest.mark.parametrize("directory", ["elsewhere", "{absolute}", "file://{absolute}"])
def test_checkpoints_in_another_directory_are_seen(directory: str, tmp_path: Path) -> None:
    absolute = tmp_path / ("run/elsewhere" if directory == "elsewhere" else "other")
    run = run_with_checkpoints_in(directory.format(absolute=absolute), tmp_path / "run")
    (absolute / "7").mkdir(parents=True)
    (absolute / "9.1.saving").mkdir()
    assert "step 7" in succeed("status", run)
    assert progress_of(run)[0] == 7


def test_a_store_that_does_not_answer_hides_no_run(
    object_stores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    run = run_with_checkpoints_in("s3://bucket/run", tmp_path / "run")
    out = succeed("status", run).replace("\n", " ")
    assert "12" in out
    assert "not to be seen from here: s3://bucket/run" in out
    assert progress_of(run) == (0, 12)


@pytest.mark.parametrize(
    "text", ["- 1", "checkpoint: [", "checkpoint: 3", "checkpoint: {directory: 5}"]
)
def test_a_configuration_that_is_none_means_the_usual_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 3
