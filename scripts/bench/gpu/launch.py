"""A contender's process: its environment, its time limit, what the GPU did meanwhile, and how it ended."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "RESULT "
_QUERY = "name,clocks.sm,power.draw,utilization.gpu,temperature.gpu,driver_version"
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")
_BUSY_PERCENT = 90


@dataclass(frozen=True)
class Job:
    """One process to start. `platform` goes into JAX_PLATFORMS where it is not empty."""

    contender: str
    size: str
    variant: str
    stage: str
    round: int = 0
    warmup: int = 3
    groups: int = 5
    steps: int = 4
    platform: str = ""
    trace: Path | None = None

    @property
    def xla_flags(self) -> str:
        """What the variant's `xla` key stands for."""
        named = dict(pair.split("=", 1) for pair in self.variant.split(",") if "=" in pair)
        flags = filter(None, named.get("xla", "").split("+"))
        return " ".join("--" + flag.replace(":", "=", 1) for flag in flags)

    @property
    def name(self) -> str:
        return f"{self.stage}: {self.contender} {self.variant or 'as it comes'}"


@dataclass(frozen=True)
class Setting:
    """What all processes share. `path`: folders in front of PYTHONPATH. `log`: takes what they write to stderr."""

    path: tuple[Path, ...]
    cache: Path
    log: Path


@dataclass
class Outcome:
    """status: `ok`, `out of memory`, `failed` or `stopped` (at its time limit). gpu: medians over busy seconds."""

    contender: str
    variant: str
    stage: str
    round: int
    seconds: float
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def launch(job: Job, setting: Setting, limit: float) -> Outcome:
    """Start the process, wait for it, and kill it after `limit` seconds."""
    started = time.time()
    with setting.log.open("a") as log:
        print(f"\n=== {job.name}, round {job.round}", file=log, flush=True)
        process = subprocess.Popen(
            _command(job, started),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(job, setting),
            start_new_session=True,
        )
        samples, printed = _follow(process, started + limit)
    seconds = time.time() - started
    outcome = Outcome(job.contender, job.variant, job.stage, job.round, seconds, "ok")
    outcome.gpu = _summary(samples)
    line = next((x for x in reversed(printed.splitlines()) if x.startswith(MARK)), "")
    if line and process.returncode == 0:
        outcome.result = json.loads(line.removeprefix(MARK))
    else:
        outcome.status, outcome.error = _failure(setting.log, stopped=seconds >= limit)
    return outcome


def smi() -> dict[str, Any]:
    """What nvidia-smi says now: name, SM clock in MHz, power in W, load in %, temperature in C; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    values = [value.strip() for value in done.stdout.split(",")]
    names = _QUERY.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def _command(job: Job, started: float) -> list[str]:
    command = [sys.executable, str(HERE / "contender.py"), job.contender, "--size", job.size]
    command += ["--variant", job.variant, "--groups", str(job.groups), "--steps", str(job.steps)]
    command += ["--warmup", str(job.warmup), "--started", str(started)]
    return command if job.trace is None else [*command, "--trace", str(job.trace)]


def _environment(job: Job, setting: Setting) -> dict[str, str]:
    environment = dict(os.environ)
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(
        [*map(str, setting.path), *([inherited] if inherited else [])]
    )
    # A benchmark has the GPU to itself: three quarters of it, JAX's default, would decide which variants fit.
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    environment["JAX_COMPILATION_CACHE_DIR"] = str(setting.cache / "jax")
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(setting.cache / "inductor")
    if job.platform:
        environment["JAX_PLATFORMS"] = job.platform
    if job.xla_flags:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} {job.xla_flags}".strip()
    return environment


def _follow(process: subprocess.Popen[str], deadline: float) -> tuple[list[dict[str, Any]], str]:
    samples: list[dict[str, Any]] = []
    while True:
        try:
            printed, _ = process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            samples.append(smi())
            if time.time() > deadline:
                os.killpg(process.pid, signal.SIGKILL)  # Its compiler's workers too.
        else:
            return samples, printed


def _summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    busy = [s for s in samples if s and _number(s["utilization.gpu"]) >= _BUSY_PERCENT]
    if not busy:
        return {}
    names = {"clocks.sm": "sm_mhz", "power.draw": "watts", "temperature.gpu": "celsius"}
    return {to: statistics.median(_number(s[name]) for s in busy) for name, to in names.items()}


def _number(told: str) -> float:
    """0 for what nvidia-smi does not know of this machine, `[N/A]`."""
    return float(told) if told.replace(".", "", 1).isdigit() else 0.0


def _failure(log: Path, *, stopped: bool) -> tuple[str, str]:
    if stopped:
        return "stopped", "its time limit was reached"
    written = log.read_text(errors="replace").rpartition("\n=== ")[2].strip()
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    told = next((x for x in reversed(lines) if "Error" in x or "RESOURCE" in x), lines[-1])
    out_of_memory = any(word in written for word in _OUT_OF_MEMORY)
    return "out of memory" if out_of_memory else "failed", told[:300]
