"""The command called as its entry point is, and small programs that stand for a training process."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from jaxscale.cli.main import run
from jaxscale.launch.members import Member

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "configs/text/moby-dick.txt"
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


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit status and its two outputs."""

    status: int
    out: str
    err: str


def call(*arguments: str | Path) -> Answer:
    """The `jaxscale` command with these arguments, in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv = ["jaxscale", *map(str, arguments)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, out.getvalue(), err.getvalue())


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
