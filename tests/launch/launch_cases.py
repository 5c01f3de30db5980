"""The command called as its entry point is, and small programs that stand for a training process."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cli_cases import BOOK, ROOT, call

from jaxscale.launch.members import Member

__all__ = ["BOOK", "ROOT", "call", "free_port", "python", "start_command", "write_config"]

CONFIG = """
name: tiny
model:
  {{family: llama3, vocab_size: 264, max_positions: 32, num_layers: 2, embed_dim: 32, num_heads: 8, head_dim: 8,
    num_kv_heads: 8, mlp_dim: 64, tied_embeddings: true}}
data: {{train: {text}, sequence_length: 32, eval_fraction: 0.1, store: {store}, workers: 1}}
training: {{steps: 3, global_batch: 8, optimizer: {{learning_rate: 1.0e-2}}, eval_batches: 2, sample_tokens: 0}}
checkpoint: {{every: 2}}
telemetry: {{log_every: 1, trackers: []}}
"""


def write_config(folder: Path) -> Path:
    """A run that trains in a second, over the first 40 kB of the book, with its store beside it."""
    text = folder / "text.txt"
    text.write_text(BOOK.read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(text=text, store=folder / "stores"))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python(label: str, program: str, folder: Path, *arguments: str) -> Member:
    """A member that runs a line of Python."""
    argv = (sys.executable, "-c", program, *arguments)
    return Member(label, argv, folder / f"{label}.log")


def start_command(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxscale", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
