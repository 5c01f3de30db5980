"""A run small enough to train in a second, as a file on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parents[2] / "configs/text/moby-dick.txt"
CONFIG = """
name: tiny
model:
  {{family: llama3, vocab_size: 264, max_positions: 32, num_layers: 2, embed_dim: 32, num_heads: 8, head_dim: 8,
    num_kv_heads: 8, mlp_dim: 64, tied_embeddings: true}}
data: {{train: {text}, sequence_length: 32, eval_fraction: 0.1, store: {store}, workers: 1}}
training:
  {{steps: 12, global_batch: 8, optimizer: {{learning_rate: 1.0e-2}}, eval_every: 6, eval_batches: 2, sample_tokens: 4}}
checkpoint: {{every: 4, keep_last: 2}}
telemetry: {{log_every: 1, trackers: []}}
"""


def write_config(folder: Path, extra: str = "") -> Path:
    """The configuration over the first 40 kB of the book, with its stores beside it."""
    text = folder / "text.txt"
    text.write_text(TEXT.read_text()[:40_000])
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(text=text, store=folder / "stores") + extra)
    return path


LIMIT_FILES = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
"""


def command(
    config: Path, run_dir: Path, *overrides: str, largest_file: int | None = None
) -> list[str]:
    limit = LIMIT_FILES.format(largest_file) if largest_file else ""
    code = limit + "from jaxscale.cli.main import run; run()"
    return [sys.executable, "-c", code, "train", str(config), *overrides, "--run-dir", str(run_dir)]


def start(
    config: Path, run_dir: Path, *overrides: str, devices: int = 1, largest_file: int | None = None
) -> subprocess.Popen[str]:
    """The command line in a process of its own; `largest_file`: bytes behind which its writes fail (EFBIG)."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        command(config, run_dir, *overrides, largest_file=largest_file),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def records(run_dir: Path, key: str) -> dict[int, Any]:
    """A metric by step."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}
