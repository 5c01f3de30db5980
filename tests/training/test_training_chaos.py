"""A few random kills of a run and its export; `scripts/chaos/soak.py` makes a hundred."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts/chaos/soak.py"


@pytest.mark.slow
def test_four_random_kills_change_nothing(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, str(SOAK), "--kills=4", "--per-run=4", "--steps=60", f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(SOAK.parents[2])}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    assert found["kills"] == 4
    assert found["failures"] == []
    assert found["longest_seconds"] < found["bound_seconds"]
