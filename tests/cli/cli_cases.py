"""The command called as its entry point is, and a run that trains in seconds."""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from jaxscale.cli.main import run

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "configs/text/moby-dick.txt"
LARGEST = ROOT / "configs/models/llama3.1-405b.yaml"
EVAL_BATCHES = 2
CONFIG = """
name: tiny
model:
  {{family: llama3, vocab_size: 300, max_positions: 48, num_layers: 2, embed_dim: 32, num_heads: 8, head_dim: 8,
    num_kv_heads: 8, mlp_dim: 64, tied_embeddings: true}}
data: {{train: {text}, sequence_length: 32, eval_fraction: 0.1, store: {store}, workers: 1}}
training:
  {{steps: 200, global_batch: 8, optimizer: {{learning_rate: 1.0e-2}}, eval_batches: {eval_batches}, sample_tokens: 0}}
plan: {{data: 8}}
telemetry: {{log_every: 50, trackers: []}}
"""


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit status and its two outputs."""

    status: int
    out: str
    err: str


def call(*arguments: str | Path, out: io.StringIO | None = None) -> Answer:
    """The `jaxscale` command with these arguments, in this process, with `out` as its standard output."""
    out, err, status = out or io.StringIO(), io.StringIO(), 0
    argv = ["jaxscale", *map(str, arguments)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, out.getvalue(), err.getvalue())


def succeed(*arguments: str | Path) -> str:
    """Standard output of a command that must end well."""
    answer = call(*arguments)
    assert answer.status == 0, answer
    return answer.out


def command(*arguments: str | Path) -> Sequence[str]:
    """The same for a process of its own."""
    code = "from jaxscale.cli.main import run; run()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def write_config(folder: Path) -> Path:
    """A run's configuration over a page of the book, fifty times: enough to learn to say words."""
    text = folder / "text.txt"
    page = BOOK.read_text(encoding="utf-8")[20_000:20_800]
    text.write_text(page * 50, encoding="utf-8")
    path = folder / "tiny.yaml"
    store = folder / "stores"
    path.write_text(CONFIG.format(text=text, store=store, eval_batches=EVAL_BATCHES))
    return path
