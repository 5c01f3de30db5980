import sys
from importlib import import_module
from pathlib import Path

import pytest
from cli_cases import write_config

from jaxscale.config.loading import load_config
from jaxscale.training.run import train_run

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
_stores = import_module("object_stores")
object_stores, store = _stores.object_stores, _stores.store


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="session")
def trained(config: Path) -> Path:
    """The directory of a finished run."""
    train_run(load_config(config), config.parent / "run", say=lambda _: None)
    return config.parent / "run"
