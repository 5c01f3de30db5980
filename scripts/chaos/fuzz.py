"""Mutated configurations and command lines: every one must end with status 0, or 2 and a message; none may hang.

    python scripts/chaos/fuzz.py --seed 1 --count 2000 --out docs/benchmarks/chaos/fuzz.json

Each case follows from the seed and its number alone, and runs `jaxscale` in a process of its own (forked, so that
modules are loaded once). One that failed runs again with `--first NUMBER --count 1 --show`. With `--seconds 200` it
stops after that time, and the same command goes on where the file of `--out` ends.
"""

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Self

from fuzz_cases import Case, Where, make_case
from fuzz_mutations import known_keys

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0
MEMORY = 24 * 2**30
TEXT = "It was the best of times, it was the worst of times. " * 400
# What a command may end with, beside which it has to say something.
DONE, USERS_MISTAKE = 0, 2


@dataclass(frozen=True)
class Outcome:
    """How a case ended. problem: why that is not as it should be; empty if it is."""

    number: int
    arguments: list[str]
    status: int | None
    seconds: float
    problem: str
    words: str


@dataclass
class Tally:
    """All outcomes in numbers."""

    by_command: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)
    slowest: float = 0.0
    cases: int = 0

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Self:
        """What `as_data` wrote down."""
        counts = {name: Counter(found) for name, found in data["by_command"].items()}
        failures = [Outcome(**one) for one in data["failures"]]
        return cls(counts, failures, data["slowest_seconds"], data["cases"])

    def add(self, case: Case, outcome: Outcome) -> None:
        counts = self.by_command.setdefault(case.arguments[0], Counter())
        counts[str(outcome.status) if not outcome.problem else "failed"] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        self.cases += 1
        if outcome.problem:
            self.failures.append(outcome)


def run_case(case: Case, number: int, folder: Path, limit: float) -> Outcome:
    """Runs a case in a directory of its own, which is gone afterwards."""
    place = folder / "case"
    place.mkdir()
    for name, content in case.files.items():
        (place / name).write_bytes(content)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_child, args=(case.arguments, place, folder))
    began = time.monotonic()
    process.start()
    process.join(limit)
    hung = process.is_alive()
    if hung:
        _kill_group(process.pid)
        process.join()
    seconds = time.monotonic() - began
    out, err = (_read(folder / name) for name in ("out", "err"))
    shutil.rmtree(place)
    status = None if hung else process.exitcode
    problem = f"no end within {limit:.0f} s" if hung else judge(status, out, err)
    return Outcome(number, case.arguments, status, round(seconds, 2), problem, err[-2000:])


def judge(status: int | None, out: str, err: str) -> str:
    """What is wrong with how a command ended; nothing where it is as promised."""
    if "Traceback (most recent call last)" in out + err:
        return f"a traceback (status {status})"
    if status not in {DONE, USERS_MISTAKE}:
        return f"status {status}"
    if status == USERS_MISTAKE and not (out + err).strip():
        return "status 2 without a message"
    return ""


def _child(arguments: list[str], place: Path, folder: Path) -> None:
    """The command as a user calls it."""
    os.setsid()
    os.chdir(place)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    # What multiprocessing and pytest put in their place would not reach the files.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = ["jaxscale", *arguments]
    from jaxscale.cli.main import run

    try:
        run()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _kill_group(group: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group or 0, 9)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def load_modules() -> None:
    """What most cases import, once for all; nothing that starts a thread."""
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ.setdefault("COLUMNS", "200")
    # Found where a case leaves its directory for none of its own.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    for module in ("cli.auto_plan", "cli.main", "cli.planning", "config.loading", "training.run"):
        import_module(f"jaxscale.{module}")
    known_keys()


def prepare(folder: Path) -> Path:
    """A token store for the runs that get so far as to train."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    from jaxscale.config.data_section import DataSection
    from jaxscale.data.corpus import open_corpus

    store = folder / "store"
    section = DataSection.model_validate(
        {"train": str(text), "store": str(store), "eval_fraction": 0.2, "workers": 1}
    )
    fork = multiprocessing.get_context("fork").Process(target=open_corpus, args=(section,))
    fork.start()
    fork.join()
    return next(path.parent.parent for path in store.rglob("train/manifest.json"))


@contextmanager
def sharing(lock: Path | None) -> Iterator[None]:
    """With a shared lock on the file: whoever measures on this machine locks it for himself."""
    if lock is None:
        yield
        return
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def fuzz(options: argparse.Namespace, tally: Tally) -> None:
    """The cases of a seed that `tally` has not, from `first` on; ends early when the seconds are over."""
    load_modules()
    until = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        where = Where(prepare(folder), ROOT)
        for number in range(options.first + tally.cases, options.first + options.count):
            if time.monotonic() > until:
                break
            case = make_case(Random(f"{options.seed}/{number}"), where)
            with sharing(options.lock):
                outcome = run_case(case, number, folder, SECONDS)
            tally.add(case, outcome)
            if outcome.problem or options.show:
                print(json.dumps(asdict(outcome), indent=2), flush=True)
            if options.show:
                print(_read(folder / "out"))
                print({name: content[:3000] for name, content in case.files.items()})


def resumed(options: argparse.Namespace) -> Tally:
    """What a run of the same cases has left in `--out`, where it was cut short."""
    if not (options.out and options.out.exists() and options.seconds < float("inf")):
        return Tally()
    data = json.loads(options.out.read_text())
    same = (data["seed"], data["first"]) == (options.seed, options.first)
    return Tally.of_data(data) if same else Tally()


def as_data(tally: Tally, seed: int, first: int) -> dict[str, object]:
    """What is committed as the result."""
    statuses = sum(tally.by_command.values(), Counter())
    return {
        "seed": seed,
        "first": first,
        "cases": tally.cases,
        "statuses": dict(sorted(statuses.items())),
        "by_command": {k: dict(sorted(v.items())) for k, v in sorted(tally.by_command.items())},
        "tracebacks_hangs_and_others": len(tally.failures),
        "limit_seconds": SECONDS,
        "slowest_seconds": tally.slowest,
        "python": platform.python_version(),
        "failures": [asdict(one) for one in tally.failures],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="to stop after")
    parser.add_argument("--show", action="store_true", help="print every case")
    parser.add_argument("--lock", type=Path, help="a file to lock, shared, while a case runs")
    parser.add_argument("--out", type=Path, help="write the numbers here")
    options = parser.parse_args()
    tally = resumed(options)
    fuzz(options, tally)
    data = as_data(tally, options.seed, options.first)
    text = json.dumps(data, indent=2) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    print(text)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
