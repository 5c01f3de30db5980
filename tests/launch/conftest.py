import os
from pathlib import Path

import pytest
from fake_programs import Fakes, make_fakes


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Programs of other machines, first on the PATH."""
    found = make_fakes(tmp_path / "fakes")
    for name, value in found.environment(os.environ["PATH"]).items():
        monkeypatch.setenv(name, value)
    return found
