"""A process a case: the next one imports its packages while the one before measures."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import Setting, smi

MARK = "RESULT "
_BUSY_PERCENT = 90
_SAMPLED = {"clocks.sm": "sm_mhz", "power.draw": "watts", "temperature.gpu": "celsius"}


@dataclass
class Child:
    """Started, and waiting to be told to go."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    samples: list[dict[str, Any]] = field(default_factory=list)

    def finish(self, limit: float) -> dict[str, Any]:
        """Let it go, and wait; killed after `limit` seconds. The result, with its `status` and what the GPU did."""
        begun = time.time()
        printed = self._follow(begun + limit)
        seconds = time.time() - begun
        lines = printed.splitlines()
        line = next((each for each in reversed(lines) if each.startswith(MARK)), "")
        if line and self.process.returncode == 0:
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
        else:
            status = "stopped" if seconds >= limit else "failed"
            found = {"status": status, "error": _last_error(self.written())}
        return {**found, "seconds": seconds, "gpu": _busy(self.samples)}

    def written(self) -> str:
        """What it wrote to stderr so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # Its compiler's workers too.
            self.process.communicate()

    def _follow(self, deadline: float) -> str:
        assert self.process.stdin is not None
        # One that has died already says why in its log.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        while True:
            try:
                return self.process.communicate(timeout=1)[0]
            except subprocess.TimeoutExpired:
                self.samples.append(smi())
                if time.time() > deadline:
                    os.killpg(self.process.pid, signal.SIGKILL)


def start(name: str, options: Sequence[str], setting: Setting, platform: str | None) -> Child:
    """platform: for JAX_PLATFORMS, where it is not the machine's own."""
    log = setting.cache / "logs" / f"{name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "planner_gpu.measuring", name, "--wait", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=_environment(setting, platform),
            start_new_session=True,
        )
    return Child(name, process, log)


def _environment(setting: Setting, platform: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    inherited = environment.get("PYTHONPATH", "")
    path = [*map(str, setting.path), inherited]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    # The device has nothing else to do: JAX's default of three quarters would decide which plans fit.
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
    environment["JAX_COMPILATION_CACHE_DIR"] = str(setting.cache)
    environment.pop("JAX_PLATFORMS", None)  # The parent's own: it predicts on CPU.
    return environment | ({"JAX_PLATFORMS": platform} if platform else {})


def _last_error(written: str) -> str:
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or [""])[-1][:300]


def _busy(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the seconds in which the GPU had work; nothing where there is no nvidia-smi."""
    busy = [each for each in samples if each and _number(each["utilization.gpu"]) >= _BUSY_PERCENT]
    if not busy:
        return {}
    return {
        to: statistics.median(_number(each[name]) for each in busy) for name, to in _SAMPLED.items()
    }


def _number(told: str) -> float:
    """0 for what nvidia-smi does not know of this machine, `[N/A]`."""
    return float(told) if told.replace(".", "", 1).isdigit() else 0.0
