"""Some of the mutated configurations and command lines of `scripts/chaos/fuzz.py`, and what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import ROOT, call

FUZZ = ROOT / "scripts/chaos/fuzz.py"


@pytest.mark.slow
def test_mistakes_end_with_a_message(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, FUZZ, "--seed", "20", "--count", "60", "--out", out],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert (found["cases"], found["failures"]) == (60, [])
    # Both ends are reached, and several commands.
    assert found["statuses"]["0"] >= 5
    assert found["statuses"]["2"] >= 20
    assert len(found["by_command"]) >= 5


DEEP = "[" * 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested too deeply"),
        ("extends: 3\n", "not 3"),
        ("extends: [a.yaml, {b: 1}]\n", "no configuration file"),
        ("extends: {a: 1}\n", "not {'a': 1}"),
        ("training: 2001-99-99\n", "month"),
    ],
)
def test_files_that_it_found_to_break_the_parser(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    answer = call("config", "show", path)
    assert answer.status == 2
    assert words in answer.err


def test_a_place_where_no_run_can_be_is_the_users_to_change(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    answer = call("train", config, "--run-dir", file / "run", "training.steps=1")
    assert answer.status == 2
    assert f"cannot use {file / 'run'}: Not a directory" in answer.err
