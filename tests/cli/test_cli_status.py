"""`jaxscale status` on a run that was trained, and on what is none."""

import json
from pathlib import Path

import pytest
from cli_cases import call, succeed


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
    # The summary clocks the step a moment behind the diary.
    assert 0 <= summary["first_step_seconds"] - goodput["first_step_seconds"] < 10


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
