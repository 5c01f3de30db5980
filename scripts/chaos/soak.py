"""Random kills of random processes at random moments, and whether anything of the run's results changes.

    python scripts/chaos/soak.py --kills 100 --seed 7 --out result.json

Each run is hit several times and started again each time, as a launcher would: SIGKILL, SIGTERM and SIGSTOP (a hang),
while data is prepared, a checkpoint is read or written, or steps are made; then its export is hit too. At the end its
parameters, and the weights it exported, have to be bitwise those of a run that nothing happened to. Ends with status 1
where they are not, or where a process was still there `--bound` seconds behind a fault.

What happens to a run follows from the seed and the run's number. So a soak may be made in slices: `--runs 2` begins two
runs, and the same command goes on from what it finds in `--out`, until all kills are made.
"""

import argparse
import fcntl
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from chaos_runs import Place, Shape, Started, start
from faults import Fault, random_export_fault, random_fault

_START_SECONDS = 400.0
# A process ends by itself within 15 s once a peer is gone (docs/operations.md); a launcher would not wait that long.
_FOLLOW_SECONDS = 20.0
_POLL = 0.02


@dataclass(frozen=True)
class Hit:
    """A fault that was delivered. ended: exit statuses. seconds: from the fault until no process was left."""

    fault: Fault
    processes: int
    ended: tuple[int | None, ...]
    seconds: float
    lines: int


@dataclass
class Tally:
    """All of a soak so far. undisturbed: digests of the parameters and the export of a run that nothing happens to, and
    the seconds of its export."""

    hits: list[Hit] = field(default_factory=list)
    missed: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    undisturbed: tuple[str, str, float] | None = None


def tally_of(data: dict[str, Any]) -> Tally:
    """A tally as `asdict` wrote it to a file of JSON."""
    hits = [
        Hit(**{**hit, "fault": Fault(**hit["fault"]), "ended": tuple(hit["ended"])})
        for hit in data["hits"]
    ]
    given = {one.name: data[one.name] for one in fields(Tally)}
    undisturbed = data["undisturbed"] and tuple(data["undisturbed"])
    return Tally(**{**given, "hits": hits, "undisturbed": undisturbed})


@contextmanager
def sharing(lock: Path | None) -> Iterator[None]:
    """With a shared lock on the file: whoever measures on this machine locks it for himself."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


class Soak:
    """Hits runs of one shape until there are enough hits."""

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        seed: int,
        tally: Tally,
        *,
        bound: float,
        lock: Path | None = None,
    ) -> None:
        self.folder, self.shape, self.seed = folder, shape, seed
        self.bound, self.lock = bound, lock
        self.tally = tally
        self.chance = random.Random(seed)

    def undisturbed(self) -> tuple[str, str, float]:
        """See `Tally`."""
        place = self._place("undisturbed")
        self._finish(place, start(place, place.train_command(), 0, self.shape.processes))
        print("undisturbed run done", flush=True)
        began = time.monotonic()
        self._finish(place, start(place, place.export_command(), 1))
        return place.parameters(), place.exported(), time.monotonic() - began

    def hit(self, kills: int, per_run: int, runs: int, report: Callable[[], object]) -> None:
        """`kills` hits in all, about `per_run` a run; one of five is of the export. Reports behind each run.

        runs: that are begun before it returns, with less hits where those are not enough.
        """
        self.tally.undisturbed = wanted = self.tally.undisturbed or self.undisturbed()
        last = self.tally.runs + runs
        while len(self.tally.hits) < kills and self.tally.runs < last and not self.tally.failures:
            left = min(per_run, kills - len(self.tally.hits))
            exports = left // 5
            self.chance.seed(f"{self.seed}-{self.shape.processes}-{self.tally.runs}")
            place = self._place(f"run{self.tally.runs}")
            self._train(place, left - exports)
            self._export(place, exports, wanted[2])
            self.tally.runs += 1
            found = place.parameters(), place.exported()
            if found != wanted[:2]:
                self.tally.failures.append(f"{place.folder}: {found}, undisturbed {wanted[:2]}")
            print(f"{len(self.tally.hits)} hits in {self.tally.runs} runs", flush=True)
            report()

    def _place(self, name: str) -> Place:
        place = Place(self.folder / f"{self.shape.processes}-{name}", self.shape)
        for left in (place.folder, place.run):  # Of a slice that was ended.
            shutil.rmtree(left, ignore_errors=True)
        place.write_config()
        return place

    def _train(self, place: Place, kills: int) -> None:
        attempt = hits = 0
        while hits < kills and not place.finished():
            processes = self.shape.processes
            fault = random_fault(self.chance, processes, first=place.num_lines() == 0)
            with sharing(self.lock):
                started = start(place, place.train_command(), attempt, processes)
                hits += self._strike(place, started, fault)
            attempt += 1
        with sharing(self.lock):
            self._finish(place, start(place, place.train_command(), attempt, self.shape.processes))

    def _export(self, place: Place, kills: int, seconds: float) -> None:
        for attempt in range(kills):
            with sharing(self.lock):
                started = start(place, place.export_command(), 1000 + attempt)
                self._strike(place, started, random_export_fault(self.chance, seconds))
        with sharing(self.lock):
            self._finish(place, start(place, place.export_command(), 2000))

    def _strike(self, place: Place, started: Started, fault: Fault) -> bool:
        """Whether the fault was delivered; the processes have ended either way."""
        if not fault.wait(place, started, _START_SECONDS):
            self.tally.missed += 1
            self._wait(place, started, _START_SECONDS)
            return False
        fault.strike(started)
        began = time.monotonic()
        self._wait(place, started, self.bound, stopped=fault.signal == "SIGSTOP")
        hit = Hit(
            fault,
            len(started.processes),
            tuple(started.codes()),
            time.monotonic() - began,
            place.num_lines(),
        )
        self.tally.hits.append(hit)
        return True

    def _wait(
        self, place: Place, started: Started, seconds: float, *, stopped: bool = False
    ) -> None:
        """Until all processes have ended. Ended for them, as a launcher does: those that stay too long behind one that
        has ended, and a single one whose log has not grown for as long as a hang takes."""
        hang = self.shape.hang_seconds
        began = grown = time.monotonic()
        lines, first_end = place.num_lines(), None
        while started.running():
            now = time.monotonic()
            if place.num_lines() != lines:
                lines, grown = place.num_lines(), now
            if first_end is None and any(code is not None for code in started.codes()):
                first_end = now
            behind = first_end is not None and now - first_end > _FOLLOW_SECONDS
            alone = stopped and len(started.processes) == 1 and now - grown > hang
            late = now - began > seconds
            if late:
                self.tally.failures.append(f"{place.folder}: still there after {seconds:g} s")
            if behind or alone or late:
                started.end()
            time.sleep(_POLL)

    def _finish(self, place: Place, started: Started) -> None:
        """To its end, which it has to reach."""
        self._wait(place, started, _START_SECONDS)
        if any(started.codes()):
            self.tally.failures.append(
                f"{place.folder}: {started.codes()}\n{started.output()[-2000:]}"
            )
            raise SystemExit(self.tally.failures[-1])


def summary(soaks: list[Soak], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    hits = [hit for soak in soaks for hit in soak.tally.hits]
    return {
        "seed": arguments.seed,
        "kills": len(hits),
        "missed": sum(soak.tally.missed for soak in soaks),
        "runs": sum(soak.tally.runs for soak in soaks),
        "failures": [failure for soak in soaks for failure in soak.tally.failures],
        "bound_seconds": arguments.bound,
        "longest_seconds": round(max((hit.seconds for hit in hits), default=0.0), 1),
        "by_signal": Counter(hit.fault.signal for hit in hits),
        "by_phase": Counter(hit.fault.phase for hit in hits),
        "by_processes": Counter(str(hit.processes) for hit in hits),
        "by_exit_status": Counter(str(code) for hit in hits for code in hit.ended),
        "wall_seconds": round(seconds),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "soaks": [{"shape": asdict(soak.shape), **asdict(soak.tally)} for soak in soaks],
    }


def shape_of(processes: int, steps: int) -> Shape:
    """What two processes do together takes them longer: fewer steps and checkpoints."""
    return Shape(processes=processes, steps=steps // processes, every=Shape.every * processes)


def earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the slices before have found; nothing where this is the first. Raises SystemExit for another soak's."""
    if arguments.out is None or not arguments.out.exists():
        return {}
    found: dict[str, Any] = json.loads(arguments.out.read_text())
    shapes = [
        asdict(shape_of(one["shape"]["processes"], arguments.steps)) for one in found["soaks"]
    ]
    if found["seed"] != arguments.seed or shapes != [one["shape"] for one in found["soaks"]]:
        raise SystemExit(f"{arguments.out} is of another soak: take another --out, or remove it")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--of-two", type=int, default=0, help="of them in runs of two processes")
    parser.add_argument("--per-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bound", type=float, default=90.0, help="seconds a fault may last")
    parser.add_argument("--steps", type=int, default=Shape.steps)
    parser.add_argument("--runs", type=int, default=10**6, help="to begin in this slice")
    parser.add_argument("--folder", type=Path, help="where runs are (default: one that is removed)")
    parser.add_argument("--lock", type=Path, help="file to lock (shared) while processes run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began, before = time.monotonic(), earlier(arguments)
    tallies = {one["shape"]["processes"]: tally_of(one) for one in before.get("soaks", ())}
    soaks: list[Soak] = []

    def report() -> dict[str, Any]:
        seconds = before.get("wall_seconds", 0) + time.monotonic() - began
        found = summary(soaks, arguments, seconds)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        return found

    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for processes in (1, 2):
            kills = arguments.of_two if processes == 2 else arguments.kills - arguments.of_two
            if kills:
                soak = Soak(
                    arguments.folder or Path(folder),
                    shape_of(processes, arguments.steps),
                    arguments.seed,
                    tallies.get(processes, Tally()),
                    bound=arguments.bound,
                    lock=arguments.lock,
                )
                soaks.append(soak)
                try:
                    soak.hit(kills, arguments.per_run, arguments.runs, report)
                finally:
                    report()
    found = report()
    shown = {name: value for name, value in found.items() if name != "soaks"}
    print(json.dumps(shown, indent=1))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
