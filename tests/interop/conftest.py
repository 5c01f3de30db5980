"""Tests here share the tiny models and the transformers oracle of tests/models, and the command of tests/cli."""

import sys
from pathlib import Path

for folder in ("models", "cli"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
