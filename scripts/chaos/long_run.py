"""A long run of a tiny model: does memory grow, do files stay open, do steps get slower, what do checkpoints cost?

    python scripts/chaos/long_run.py --steps 10000 --out result.json

Step times are by the loop's clock, each step logged; time in checkpoints is taken out of them and counted by itself.
Ends with status 1 where a bound is broken.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parents[2] / "configs/text/moby-dick.txt"
CONFIG = """
name: long
model:
  {{family: llama3, vocab_size: 264, max_positions: 64, num_layers: 2, embed_dim: {embed}, num_heads: 4, head_dim: 16,
    num_kv_heads: 4, mlp_dim: 128, tied_embeddings: true}}
data: {{train: {text}, sequence_length: 64, eval_fraction: 0, store: {store}, workers: 1}}
training: {{steps: {steps}, global_batch: {batch}, optimizer: {{learning_rate: 1.0e-3}}, sample_tokens: 0}}
plan: {{fsdp: 1}}
checkpoint: {{every: 100, keep_last: 3}}
telemetry: {{log_every: 1, trackers: []}}
"""
# The allocator takes memory in steps: what the second half of the run may have more than the first.
GROWTH_BYTES, SLOWEST, CHECKPOINT_SHARE = 32 * 2**20, 2.0, 0.03


@dataclass(frozen=True)
class Sample:
    """Of the process, at a moment of the run."""

    step: int
    resident_bytes: int
    open_files: int
    stolen_seconds: float


def stolen() -> float:
    """Seconds of this machine's cores that its host gave to others since it started (Linux; proc_stat(5))."""
    return int(Path("/proc/stat").read_text().split("\n")[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def watch(process: subprocess.Popen[bytes], log: Path, samples: list[Sample]) -> None:
    """A sample a second while steps are made."""
    while process.poll() is None:
        if log.exists():
            step = log.read_bytes().count(b"\n")
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                files = sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())
            except (OSError, IndexError):
                return
            samples.append(Sample(step, pages * os.sysconf("SC_PAGE_SIZE"), files, stolen()))
        time.sleep(1)


def analyzed(log: Path, samples: list[Sample], skip: int) -> dict[str, Any]:
    """skip: first steps, in which programs are compiled and buffers made."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line and line["step"] > skip]
    saving = [line["checkpoint_seconds"] for line in steps]
    plain = sorted(line["step_seconds"] - line["checkpoint_seconds"] for line in steps)
    wall = sum(line["step_seconds"] for line in steps)
    halves = _halves([sample for sample in samples if sample.step > skip])
    memory = [statistics.median(sample.resident_bytes for sample in half) for half in halves]
    files = [max(sample.open_files for sample in half) for half in halves]
    return {
        "steps": lines[-1]["step"],
        "median_step_seconds": statistics.median(plain),
        "p99_step_seconds": plain[int(0.99 * len(plain))],
        "largest_step_seconds": plain[-1],
        "p99_over_median": plain[int(0.99 * len(plain))] / statistics.median(plain),
        "checkpoints": sum(seconds > 0 for seconds in saving),
        "checkpoint_share_of_wall": sum(saving) / wall,
        "resident_bytes_by_half": memory,
        "most_open_files_by_half": files,
        "wall_seconds_of_steps": wall,
        "core_seconds_stolen_by_the_host": samples[-1].stolen_seconds - samples[0].stolen_seconds,
        "samples": [asdict(sample) for sample in samples[:: max(len(samples) // 50, 1)]],
    }


def _halves(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    middle = len(samples) // 2
    return samples[:middle], samples[middle:]


def broken(found: dict[str, Any]) -> list[str]:
    """Bounds that do not hold."""
    memory, files = found["resident_bytes_by_half"], found["most_open_files_by_half"]
    checks = {
        f"memory grew by {memory[1] - memory[0]:,} bytes": memory[1] - memory[0] > GROWTH_BYTES,
        f"open files went from {files[0]} to {files[1]}": files[1] > files[0] + 2,
        f"p99 is {found['p99_over_median']:.2f} medians": found["p99_over_median"] > SLOWEST,
        f"checkpoints took {found['checkpoint_share_of_wall']:.1%}": (
            found["checkpoint_share_of_wall"] > CHECKPOINT_SHARE
        ),
    }
    return [message for message, is_broken in checks.items() if is_broken]


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    config, directory = folder / "long.yaml", folder / "run"
    text = CONFIG.format(
        text=TEXT,
        store=folder / "stores",
        steps=arguments.steps,
        batch=arguments.batch,
        embed=arguments.embed,
    )
    config.write_text(text)
    command = [sys.executable, "-m", "jaxscale", "train", str(config), "--run-dir", str(directory)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        samples: list[Sample] = []
        watcher = threading.Thread(
            target=watch, args=(process, directory / "metrics.jsonl", samples)
        )
        watcher.start()
        code = process.wait()
        watcher.join()
    assert code == 0, (folder / "output").read_text()[-2000:]
    return analyzed(directory / "metrics.jsonl", samples, arguments.steps // 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--embed", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-") as folder:
        found = run(Path(folder), arguments)
    found["broken"] = broken(found)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=1))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
