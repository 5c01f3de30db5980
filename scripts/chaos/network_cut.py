"""The network between two hosts is cut while they train: who says what, how soon, and how the run goes on.

    python scripts/chaos/network_cut.py --out docs/benchmarks/chaos/network_cut.json

Two processes train in network namespaces of their own, over a switch (`two_hosts.py`). A short cut first, which has to
cost nothing. Then a long one: both processes have to name the other's host and end within the stated time; the network
is mended, both are started again, and the parameters have to be bitwise those of an undisturbed run of two such hosts.
Ends with status 1 where any of this is not so, and with 3 where this machine makes no namespaces.
"""

import argparse
import json
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from chaos_runs import Place, Shape, Started, launch
from two_hosts import ADDRESSES, NODES, NoNamespaces, TwoHosts, two_hosts

from jaxscale.launch.peers import LOST_SECONDS

# A sign of life may be as old as its period when the cut comes; and a process has some seconds to end in.
NAMED_SECONDS, ENDED_SECONDS = LOST_SECONDS + 5, LOST_SECONDS + 30
_START_SECONDS = 400.0
_PORT = 8476
_POLL = 0.05
NO_NAMESPACES = 3


@dataclass(frozen=True)
class Side:
    """What one host did behind the cut. named: seconds until it named the other; ended: until its process was gone."""

    host: str
    named: float | None
    ended: float | None
    status: int | None
    words: str


@dataclass(frozen=True)
class Pair:
    """A run on two hosts."""

    place: Place
    hosts: TwoHosts

    def start(self, attempt: int) -> Started:
        devices = self.place.shape.devices // 2
        logs = [self.place.folder / f"{attempt}-{node}.log" for node in NODES]
        started = [
            launch(self.hosts.command(index, self._train(index)), log, devices)
            for index, log in enumerate(logs)
        ]
        return Started(started, logs)

    def _train(self, index: int) -> list[str]:
        world = {"coordinator": f"{ADDRESSES[0]}:{_PORT}", "num-processes": 2, "process-id": index}
        flags = [f"--{key}={value}" for key, value in world.items()]
        return [sys.executable, "-m", "jaxscale", *self.place.train_command(), *flags]

    def finish(self, started: Started) -> None:
        """To its end, which it has to reach."""
        wait(lambda: not started.running(), _START_SECONDS)
        codes = started.codes()
        started.end()
        if any(codes):
            raise SystemExit(f"{self.place.folder}: {codes}\n{started.output()[-4000:]}")


def wait(come: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until it came; None where it did not."""
    began = time.monotonic()
    while not come():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(_POLL)
    return time.monotonic() - began


def wait_for_steps(place: Place, started: Started, count: int) -> None:
    """More lines of the log than now."""
    wanted = place.num_lines() + count
    wait(lambda: not started.running() or place.num_lines() >= wanted, _START_SECONDS)


def behind_the_cut(started: Started) -> list[Side]:
    """What both hosts do, watched until their processes are gone or the stated time is over; what is left is ended."""
    began = time.monotonic()
    named: dict[int, float] = {}
    ended: dict[int, float] = {}
    while time.monotonic() - began < ENDED_SECONDS and len(ended) < len(NODES):
        for index, process in enumerate(started.processes):
            if index not in named and _words(started.logs[index], NODES[1 - index]):
                named[index] = round(time.monotonic() - began, 1)
            if index not in ended and process.poll() is not None:
                ended[index] = round(time.monotonic() - began, 1)
        time.sleep(_POLL)
    codes = started.codes()
    started.end()
    return [
        Side(node, named.get(i), ended.get(i), codes[i], _words(started.logs[i], NODES[1 - i]))
        for i, node in enumerate(NODES)
    ]


def _words(log: Path, host: str) -> str:
    """The line by which a process names a host that it has lost."""
    with suppress(FileNotFoundError):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("error: ") and host in line:
                return line
    return ""


def problems(sides: list[Side]) -> list[str]:
    """What was not as stated."""
    return [
        f"{side.host}: {why}"
        for side in sides
        for why, bad in (
            (f"named nobody within {NAMED_SECONDS:g} s", _late(side.named, NAMED_SECONDS)),
            (f"not gone within {ENDED_SECONDS:g} s", _late(side.ended, ENDED_SECONDS)),
            ("ended as if it were done", side.status in {0, 2, None}),
        )
        if bad
    ]


def _late(seconds: float | None, bound: float) -> bool:
    return seconds is None or seconds > bound


def cut_and_mend(folder: Path, shape: Shape, short: float) -> dict[str, Any]:
    """The whole experiment. short: seconds of the cut that has to cost nothing."""
    with two_hosts(folder) as hosts:
        quiet = Pair(_place(folder / "undisturbed", shape), hosts)
        quiet.finish(quiet.start(0))
        print("undisturbed run done", flush=True)
        pair = Pair(_place(folder / "cut", shape), hosts)
        started = pair.start(0)
        wait_for_steps(pair.place, started, 5)
        hosts.cut()
        time.sleep(short)
        hosts.heal()
        wait_for_steps(pair.place, started, 5)
        survived = started.running() and not any(_words(log, "node") for log in started.logs)
        step = pair.place.num_lines()
        hosts.cut()
        print(f"cut for {short:g} s, then for good behind step {step}", flush=True)
        sides = behind_the_cut(started)
        hosts.heal()
        print("mended", flush=True)
        again = pair.start(1)
        pair.finish(again)
    resumed = re.findall(r"resuming behind step (\d+)", again.output())
    same = pair.place.parameters() == quiet.place.parameters()
    found = problems(sides)
    found += [] if survived else [f"a cut of {short:g} s ended the run"]
    found += [] if resumed else ["the second start found no checkpoint"]
    found += [] if same else ["parameters differ from those of the undisturbed run"]
    return {
        "short_cut_seconds": short,
        "cut_behind_step": step,
        "named_within_seconds": NAMED_SECONDS,
        "ended_within_seconds": ENDED_SECONDS,
        "sides": [asdict(side) for side in sides],
        "resumed_behind_step": int(resumed[0]) if resumed else None,
        "parameters_bitwise_those_of_the_undisturbed_run": same,
        "failures": found,
        "shape": asdict(shape),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _place(folder: Path, shape: Shape) -> Place:
    place = Place(folder, shape)
    place.write_config()
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--short", type=float, default=4.0, help="seconds of the first cut")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Namespaces outlive who made them.
    shape = Shape(processes=2, steps=arguments.steps, every=4, hang_seconds=300.0)
    with tempfile.TemporaryDirectory(prefix="network-cut-") as folder:
        try:
            found = cut_and_mend(Path(folder), shape, arguments.short)
        except NoNamespaces as reason:
            print(f"no network namespaces on this machine: {reason}")
            return NO_NAMESPACES
    text = json.dumps(found, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
