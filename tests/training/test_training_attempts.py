"""A run that is started again by itself and fails at the same step each time."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_cases import own_model, write_config

from jaxscale.config.loading import load_config
from jaxscale.errors import UserError
from jaxscale.training.health.attempts import counted
from jaxscale.training.health.preemption import Preempted, Standing
from jaxscale.training.run import train_run


@pytest.fixture(autouse=True)
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "0")


def fail(run: Path, step: int, error: BaseException, resumed: int = 4) -> None:
    """A start that makes steps up to `step` and ends with the error."""
    with pytest.raises(type(error)), counted(run, resumed=resumed, standing=Standing(done=step)):
        raise error


def die(run: Path, logged: Sequence[int], resumed: int = 4) -> None:
    """A start that is killed behind the steps that it logged."""
    counted(run, resumed=resumed, standing=Standing()).__enter__()
    lines = (json.dumps({"step": step, "loss": 1.0}) + "\n" for step in logged)
    (run / "metrics.jsonl").write_text("".join(lines))


def refused(run: Path, resumed: int = 4) -> str:
    """What the next start says; nothing where it may begin."""
    try:
        counted(run, resumed=resumed, standing=Standing()).__enter__()
    except UserError as error:
        return str(error)
    return ""


BROKEN = RuntimeError("device fell off\nand more")


def test_three_failures_at_one_step_are_enough(tmp_path: Path) -> None:
    for _ in range(3):
        fail(tmp_path, 7, BROKEN)
    words = refused(tmp_path)
    assert words.startswith(
        "crash loop: the last 3 starts by Slurm job 77 failed at step 7, with the newest checkpoint of step 4; the "
        "last one because RuntimeError: device fell off. "
    )


def test_the_start_behind_a_refused_one_is_free_again(tmp_path: Path) -> None:
    for _ in range(3):
        fail(tmp_path, 7, BROKEN)
    assert refused(tmp_path)
    fail(tmp_path, 7, BROKEN)
    assert not refused(tmp_path)


def test_killed_without_a_word_at_one_step(tmp_path: Path) -> None:
    """The log says how far it was."""
    for _ in range(3):
        die(tmp_path, [1, 2, 3, 4, 5, 9])
    words = refused(tmp_path)
    assert "failed at step 9" in words
    assert "because it left no word" in words


def test_killed_before_a_step_is_no_failure_of_the_run(tmp_path: Path) -> None:
    for _ in range(5):
        die(tmp_path, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("case", "step", "error", "resumed"),
    [
        ("at another step", 8, BROKEN, 4),
        ("behind a newer checkpoint", 7, BROKEN, 6),
        ("a mistake of the user", 7, UserError("no"), 4),
        ("asked by a scheduler", 7, Preempted(), 4),
        ("asked by a person", 7, KeyboardInterrupt(), 4),
    ],
)
def test_one_that_ends_otherwise_breaks_the_row(
    tmp_path: Path, case: str, step: int, error: BaseException, resumed: int
) -> None:
    fail(tmp_path, 7, BROKEN)
    fail(tmp_path, step, error, resumed)
    fail(tmp_path, 7, BROKEN)
    assert not refused(tmp_path), case


def test_another_job_counts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        fail(tmp_path, 7, BROKEN)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert not refused(tmp_path)


def test_a_person_is_never_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        fail(tmp_path, 7, BROKEN)
    monkeypatch.delenv("SLURM_PROCID")
    assert not refused(tmp_path)


def test_a_half_written_line_is_passed_over(tmp_path: Path) -> None:
    for _ in range(3):
        fail(tmp_path, 7, BROKEN)
    file = tmp_path / "health/attempts.jsonl"
    file.write_text(file.read_text() + '{"kind": "sta\n')
    assert refused(tmp_path)


@pytest.mark.slow
def test_a_run_that_crashes_at_its_evaluation_is_refused_the_fourth_start(tmp_path: Path) -> None:
    """Its report cannot be written, as a folder has its name: behind step 6, which follows the checkpoint of step 4."""
    config = own_model(tmp_path, write_config(tmp_path))
    loaded = load_config(config, ["training.sample_tokens=0"])
    (tmp_path / "run/report.html").mkdir(parents=True)
    said: list[str] = []
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            train_run(loaded, tmp_path / "run", said.append)
    with pytest.raises(
        UserError, match="failed at step 6, with the newest checkpoint of step 4"
    ) as refused:
        train_run(loaded, tmp_path / "run", said.append)
    assert "IsADirectoryError" in str(refused.value)
