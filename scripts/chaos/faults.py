"""When and how a run is hit."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos_runs import Place, Started

SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP")
PHASES = ("preparation", "restore", "step", "checkpoint")


@dataclass(frozen=True)
class Fault:
    """signal to one process, `delay` seconds into a phase. steps: to be made before, where the phase is of steps."""

    signal: str
    phase: str
    process: int
    delay: float
    steps: int

    def wait(self, place: Place, started: Started, seconds: float) -> bool:
        """Waits for the phase, then for the delay; False where the processes ended before, or it never came."""
        lines = place.num_lines()
        begun: dict[str, Callable[[], bool]] = {
            "preparation": lambda: any((place.folder / "stores").glob("*/.*")),
            "restore": lambda: _is_restoring(place, started),
            "step": lambda: place.num_lines() != lines and place.num_lines() >= lines + self.steps,
            "checkpoint": lambda: (
                place.num_lines() != lines and any((place.run / "checkpoints").glob("*.saving"))
            ),
            "export": lambda: True,
        }
        deadline = time.monotonic() + seconds
        while not begun[self.phase]():
            if not started.running() or time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        time.sleep(self.delay)
        return started.processes[self.process].poll() is None

    def strike(self, started: Started) -> None:
        started.processes[self.process].send_signal(getattr(signal, self.signal))


def _is_restoring(place: Place, started: Started) -> bool:
    """The checkpoint's files are open, or were: restoring is a moment, of which any part may be hit."""
    folder = str(place.run / "checkpoints")
    for process in started.processes:
        descriptors = Path(f"/proc/{process.pid}/fd")
        try:
            if any(str(link.readlink()).startswith(folder) for link in descriptors.iterdir()):
                return True
        except OSError:
            continue
    return False


def random_fault(chance: random.Random, processes: int, *, first: bool) -> Fault:
    """first: of the first start of a run, which prepares its data and has nothing to restore."""
    if first:
        phase = chance.choice(("preparation", "preparation", "step", "checkpoint"))
    else:
        phase = chance.choice(("restore", "step", "step", "checkpoint"))
    longest = {"preparation": 1.0, "restore": 0.5, "step": 0.1, "checkpoint": 0.1}[phase]
    return Fault(
        signal=chance.choice(SIGNALS),
        phase=phase,
        process=chance.randrange(processes),
        delay=chance.uniform(0, longest),
        steps=chance.randint(1, 8),
    )


def random_export_fault(chance: random.Random, seconds: float) -> Fault:
    """seconds: that an export takes which nothing happens to."""
    return Fault(chance.choice(SIGNALS), "export", 0, chance.uniform(0, seconds), 0)
