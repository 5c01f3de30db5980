"""Tests of the planner import the benchmark that holds it against published results."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/bench"))
