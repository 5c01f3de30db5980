"""A run small enough to train in a second, as a file on disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxscale.checkpoint.stored import StoredArrays

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

OWN_MODEL = """
import jax
import jax.numpy as jnp
from flax import nnx


class Bigram(nnx.Module):
    def __init__(self, rngs, vocab, poison, factor):
        table = 0.02 * jax.random.normal(rngs.params(), (vocab, 16))
        self.table = nnx.Param(table, axes=("vocab", "embed"))
        self.head = nnx.Param(table.T, axes=("embed", "vocab"))
        self.poison, self.factor = poison, factor

    def __call__(self, tokens, positions, segment_ids):
        logits = self.table[...][tokens] @ self.head[...]
        return logits * jnp.where((tokens == self.poison).any(), self.factor, 1.0)


def build(rngs, vocab=264, poison=-1, factor=float("nan")):
    return Bigram(rngs, vocab, poison, factor)
"""


def write_config(folder: Path, extra: str = "") -> Path:
    """The configuration over the first 40 kB of the book, with its stores beside it."""
    text = folder / "text.txt"
    text.write_text(TEXT.read_text()[:40_000])
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(text=text, store=folder / "stores") + extra)
    return path


def own_model(folder: Path, config: Path, **arguments: float) -> Path:
    """The same run of a bigram table in a file of one's own."""
    (folder / "bigram.py").write_text(OWN_MODEL)
    lines = config.read_text().splitlines()
    first = lines.index("model:")
    behind = next(index for index, line in enumerate(lines) if line.startswith("data:"))
    given = ", ".join(f"{name}: {value}" for name, value in arguments.items())
    section = ["model:", f"  build: {folder}/bigram.py:build", f"  args: {{{given}}}"]
    own = folder / "own.yaml"
    own.write_text("\n".join(lines[:first] + section + lines[behind:]) + "\n")
    return own


def poisoned(folder: Path, factor: float | None = None) -> Path:
    """A bigram run where the one "Z" of the text poisons its batch: logits of NaN, or `factor` times themselves."""
    config = write_config(folder)
    text = (folder / "text.txt").read_text().replace("Z", "z")
    middle = len(text) // 2
    (folder / "text.txt").write_text(text[:middle] + "Z" + text[middle:])
    given = {} if factor is None else {"factor": factor}
    return own_model(folder, config, poison=ord("Z"), **given)


def saved(run: Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint, bit by bit."""
    stored = StoredArrays(run / "checkpoints" / str(step))
    return {
        path: stored.read(path, tuple(slice(0, size) for size in entry.shape)).tobytes()
        for path, entry in stored.entries.items()
    }


def stopped_at(whole: Path, step: int, run: Path) -> Path:
    """`run`: as `whole` would be if it had ended at an earlier step, which it has a checkpoint of."""
    shutil.copytree(whole, run)
    for later in (path for path in (run / "checkpoints").iterdir() if int(path.name) > step):
        shutil.rmtree(later)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (run / "metrics.jsonl").write_text("".join(kept))
    return run


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
