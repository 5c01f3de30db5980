"""Runs to be hit: their configuration, their processes, and what is left of them when they end."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxscale.checkpoint.stored import StoredArrays
from jaxscale.training.health.exits import HUNG, PREEMPTED

TEXT = Path(__file__).parents[2] / "configs/text/moby-dick.txt"
CONFIG = """
name: chaos
model:
  {{family: llama3, vocab_size: 264, max_positions: 32, num_layers: 2, embed_dim: 32, num_heads: 4, head_dim: 8,
    num_kv_heads: 2, mlp_dim: 64, tied_embeddings: true}}
data: {{train: {text}, sequence_length: 32, eval_fraction: 0.1, store: {store}, workers: 1}}
training:
  {{steps: {steps}, global_batch: 8, optimizer: {{learning_rate: 1.0e-2}}, eval_every: 20, eval_batches: 2,
    sample_tokens: 0, hang_seconds: {hang_seconds}, start_seconds: {start_seconds}}}
plan: {{fsdp: {devices}}}
checkpoint: {{every: {every}, keep_last: 3}}
telemetry: {{log_every: 1, trackers: []}}
"""
# What a process may end with that nobody killed: done, preempted, hung; and 1 or an abort where its peer was killed.
EXPECTED_ALONE = (0, PREEMPTED, HUNG)


@dataclass(frozen=True)
class Shape:
    """How large a run is. hang_seconds, start_seconds: without a step, or without a sign before the first one, after
    which its processes end themselves."""

    processes: int = 1
    devices: int = 2
    steps: int = 200
    every: int = 3
    hang_seconds: float = 10.0
    start_seconds: float = 60.0


@dataclass(frozen=True)
class Place:
    """Where one run lives. Run directories lie side by side, so that they share their compiled programs."""

    folder: Path
    shape: Shape

    @property
    def run(self) -> Path:
        return self.folder.parent / "runs" / self.folder.name

    @property
    def config(self) -> Path:
        return self.folder / "chaos.yaml"

    def write_config(self) -> None:
        self.folder.mkdir(parents=True)
        shape = self.shape
        text = CONFIG.format(
            text=TEXT,
            store=self.folder / "stores",
            steps=shape.steps,
            hang_seconds=shape.hang_seconds,
            start_seconds=shape.start_seconds,
            devices=shape.devices,
            every=shape.every,
        )
        self.config.write_text(text)

    def train_command(self) -> list[str]:
        return ["train", str(self.config), "--run-dir", str(self.run)]

    def export_command(self) -> list[str]:
        return ["export", str(self.run), str(self.folder / "hf"), "--to", "hf"]

    def finished(self) -> bool:
        return (self.run / "checkpoints" / str(self.shape.steps)).exists()

    def num_lines(self) -> int:
        """Of the log, which grows with every step."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def parameters(self) -> str:
        """A digest of every array of the last checkpoint."""
        stored = StoredArrays(self.run / "checkpoints" / str(self.shape.steps))
        digest = hashlib.sha256()
        for path, entry in sorted(stored.entries.items()):
            box = tuple(slice(0, size) for size in entry.shape)
            digest.update(path.encode() + stored.read(path, box).tobytes())
        return digest.hexdigest()

    def exported(self) -> str:
        """A digest of the exported weights, which say nothing of when or where they were made."""
        digest = hashlib.sha256()
        for path in sorted((self.folder / "hf").glob("*.safetensors")):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


@dataclass
class Started:
    """The processes of one start, each with a file of what it prints."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]
    began: float = field(default_factory=time.monotonic)

    def output(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.logs)

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def codes(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def end(self) -> None:
        """What a launcher does when one process has ended and the others do not follow."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def start(place: Place, command: list[str], attempt: int, processes: int = 1) -> Started:
    """`jaxscale COMMAND` in `processes` processes that know of each other."""
    devices = place.shape.devices // processes
    port = _free_port()
    logs = [place.folder / f"{attempt}-{process}.log" for process in range(processes)]
    started = []
    for process, log in enumerate(logs):
        flags: list[str] = []
        if processes > 1:
            world = {"coordinator": f"127.0.0.1:{port}", "num-processes": processes}
            flags = [f"--{key}={value}" for key, value in (world | {"process-id": process}).items()]
        program = [sys.executable, "-m", "jaxscale", *command, *flags]
        started.append(launch(program, log, devices))
    return Started(started, logs)


def launch(command: list[str], log: Path, devices: int) -> subprocess.Popen[bytes]:
    """A process with so many devices, and a file of what it prints."""
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(devices),
        )


def _environment(devices: int) -> Mapping[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
