"""Tests here share tiny models and transformers as tests/models has them, the command of tests/cli, and the object
stores of tests/checkpoint."""

import sys
from importlib import import_module
from pathlib import Path

for folder in ("models", "cli", "checkpoint"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

_stores = import_module("object_stores")
object_stores, store = _stores.object_stores, _stores.store
