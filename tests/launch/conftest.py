import os
import sys
from pathlib import Path

import pytest
from fake_programs import Fakes, make_fakes

# The command of tests/cli is called here too, and the small model of tests/training is trained.
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("cli", "training")]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Programs of other machines, first on the PATH."""
    found = make_fakes(tmp_path / "fakes")
    for name, value in found.environment(os.environ["PATH"]).items():
        monkeypatch.setenv(name, value)
    return found
