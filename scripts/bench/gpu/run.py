"""jaxscale's training step against a compiled PyTorch one, on one GPU: `run.py --out DIR`. See README.md.

Every contender is a process of its own, so that neither holds memory that the other needs. Stages, in order: `search`
runs each variant once and picks the fastest of each contender; `parity` compares losses of a small model with those of
fp32 on CPU; `rounds` runs the two picked ones in turn, and gives the result; `largest` finds the most rows that fit,
each contender in its leanest variant; `ablate` and `trace` are for learning. After each run gpu_step.json and
gpu_step.md are written. Exit status 1 if parity fails, or a contender has no result.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import zip_longest
from pathlib import Path

from defaults import FIRST_ROWS, LEAN, SIZES
from edge import find_edge
from launch import HERE, Job, Outcome, Setting, launch, smi
from report import CONTENDERS, Largest, Parity, Results, markdown
from wheels import unpacked

ABLATE = (
    "rows=8,attention=xla;rows=8,documents=packed;rows=8,remat=dots;rows=8,remat=minimal;rows=8,remat=full;"
    "rows=8,unroll=2;rows=8,unroll=4;rows=8,chunk=4096;rows=16,remat=dots;"
    "rows=8,xla=xla_gpu_enable_triton_gemm:false;rows=8,xla=xla_disable_hlo_passes:rematerialization"
)
PARITY_STEPS = 50
# Of the time, what the search may use: parity and the rounds need the rest.
_SEARCH_SHARE = 0.55
# Seconds that a run is expected to take before one of its kind has been seen.
_EXPECTED = {"jaxscale": 45.0, "torch": 75.0, "losses": 30.0}


@dataclass
class Bench:
    """Runs jobs while there is time, and keeps what came of them."""

    setting: Setting
    out: Path
    deadline: float
    results: Results = field(default_factory=Results)
    seen: dict[str, float] = field(default_factory=dict)

    def run(self, job: Job, deadline: float | None = None) -> Outcome | None:
        """None, and the job among the skipped, where it is not expected to end in time."""
        left = min(deadline or self.deadline, self.deadline) - time.time()
        if left < self.seen.get(job.contender, _EXPECTED[job.contender]):
            self.results.skipped.append(f"{job.name} ({left:.0f} s were left)")
            return None
        print(f"{job.name}, round {job.round} ...", file=sys.stderr, flush=True)
        outcome = launch(job, self.setting, self.deadline - time.time())
        self.seen[job.contender] = outcome.seconds
        self.results.outcomes.append(outcome)
        self.save()
        print(f"    {_told(outcome)}", file=sys.stderr, flush=True)
        return outcome

    def save(self) -> None:
        results = self.results
        content = {
            "machine": results.machine,
            "versions": results.versions(),
            "runs": [run.as_dict() for run in results.outcomes],
            "parity": [asdict(each) | {"passed": each.passed} for each in results.parity],
            "largest": results.most_rows(),
            "skipped": results.skipped,
            "problems": results.problems(),
        }
        (self.out / "gpu_step.json").write_text(json.dumps(content, indent=1))
        (self.out / "gpu_step.md").write_text(markdown(results))


def main() -> None:
    arguments = _arguments()
    bench = _bench(arguments)
    for stage in arguments.stages:
        STAGES[stage](bench, arguments)
    bench.save()
    print(markdown(bench.results))
    raise SystemExit(1 if bench.results.problems() else 0)


def search(bench: Bench, arguments: argparse.Namespace) -> None:
    """Each variant once, the contenders in turn."""
    deadline = time.time() + _SEARCH_SHARE * (bench.deadline - time.time())
    variants = zip_longest(*map(_listed, _variants(arguments).values()))
    for number, pair in enumerate(variants):
        for contender, variant in zip(CONTENDERS, pair, strict=True):
            if variant is not None:
                bench.results.wanted.add(contender)
                job = _job(arguments, contender, variant, "search")
                bench.run(replace(job, round=number, groups=2, steps=3), deadline)
    _pair(bench, arguments)


def _pair(bench: Bench, arguments: argparse.Namespace) -> None:
    """Where no number of rows has a run of both, the winner with more rows once more, with the other's."""
    found = list(filter(None, map(bench.results.best, CONTENDERS)))
    if len(found) < len(CONTENDERS) or bench.results.equal_rows():
        return
    fewer, more = sorted(found, key=lambda run: run.result["rows"])
    variant = f"{more.variant},rows={fewer.result['rows']}"  # Of a key given twice the last counts.
    job = _job(arguments, more.contender, variant, "search")
    bench.run(replace(job, round=more.round, groups=2, steps=3))


def parity(bench: Bench, arguments: argparse.Namespace) -> None:
    """Losses of a small model on this device, in both precisions, against fp32 on CPU."""
    reference = _losses(bench, arguments, "float32", "cpu")
    if not reference:
        bench.results.parity_note = "the reference on CPU has no losses"
        return
    for precision in ("float32", "bfloat16"):
        found = _losses(bench, arguments, precision, "")
        if found:
            pairs = zip(found, reference, strict=True)
            worst = max(abs(here - there) / there for here, there in pairs)
            bench.results.parity.append(Parity(precision, worst, found[0], found[-1]))
        else:
            bench.results.parity_note = f"{precision} on this device has no losses"


def rounds(bench: Bench, arguments: argparse.Namespace) -> None:
    """The best variant of each contender, in turn; the first of its list where there was no search."""
    for number in range(arguments.rounds):
        for contender, variants in _variants(arguments).items():
            chosen = _best(bench, contender, variants)
            if chosen:
                bench.run(replace(_job(arguments, contender, chosen, "rounds"), round=number))


def largest(bench: Bench, arguments: argparse.Namespace) -> None:
    """Half of the time is the first contender's; what it leaves is the second's."""
    start = 2 if arguments.smoke else FIRST_ROWS
    for share, contender in zip((0.5, 1.0), CONTENDERS, strict=True):
        if _listed(_variants(arguments)[contender]):
            bench.results.wanted.add(contender)
            deadline = time.time() + share * (bench.deadline - time.time())
            fits = partial(_fits, bench, arguments, contender, deadline)
            edge = find_edge(fits, start, runs=2 if arguments.smoke else 8)
            bench.results.largest.append(Largest(contender, LEAN[contender], edge))


def _fits(
    bench: Bench, arguments: argparse.Namespace, contender: str, deadline: float, rows: int
) -> bool | None:
    """Two steps: optimizer state of PyTorch's is there in the second only."""
    job = _job(arguments, contender, f"rows={rows},{LEAN[contender]}", "largest")
    outcome = bench.run(replace(job, warmup=1, groups=1, steps=1), deadline)
    status = "skipped" if outcome is None else outcome.status
    return {"ok": True, "out of memory": False}.get(status)


def ablate(bench: Bench, arguments: argparse.Namespace) -> None:
    for variant in _listed(arguments.ablate):
        job = _job(arguments, "jaxscale", variant, "ablate")
        bench.run(replace(job, groups=2, steps=3))


def trace(bench: Bench, arguments: argparse.Namespace) -> None:
    """The best variant of ours once more, traced."""
    job = _job(arguments, "jaxscale", _best(bench, "jaxscale", arguments.ours), "trace")
    bench.run(replace(job, groups=1, steps=2, trace=bench.out))


def _losses(
    bench: Bench, arguments: argparse.Namespace, precision: str, platform: str
) -> list[float]:
    size = "tiny" if arguments.smoke else "small"
    variant = f"rows=8,precision={precision}"
    job = Job("losses", size, variant, "parity", steps=PARITY_STEPS, platform=platform)
    outcome = bench.run(job)
    return [] if outcome is None else outcome.result.get("losses", [])


def _job(arguments: argparse.Namespace, contender: str, variant: str, stage: str) -> Job:
    return Job(contender, "tiny" if arguments.smoke else arguments.size, variant, stage)


def _variants(arguments: argparse.Namespace) -> dict[str, str]:
    return dict(zip(CONTENDERS, (arguments.ours, arguments.torch), strict=True))


def _best(bench: Bench, contender: str, variants: str) -> str:
    best = bench.results.best(contender)
    return best.variant if best else next(iter(_listed(variants)), "")


def _stages(names: str) -> list[str]:
    unknown = set(names.split(",")) - set(STAGES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no stage {', '.join(sorted(unknown))}")
    return names.split(",")


def _listed(variants: str) -> list[str]:
    return [variant.strip() for variant in variants.split(";") if variant.strip()]


def _told(outcome: Outcome) -> str:
    if outcome.status != "ok":
        return f"{outcome.status} after {outcome.seconds:.0f} s: {outcome.error}"
    tokens = outcome.result.get("tokens_per_second")
    rate = f", {tokens:,.0f} tokens/s" if tokens else ""
    return f"{outcome.seconds:.0f} s{rate}"


def _bench(arguments: argparse.Namespace) -> Bench:
    started = time.time()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.gettempdir()) / "jaxscale-bench-gpu"
    path = [HERE.parents[2]]
    if arguments.wheels is not None:
        path.append(unpacked(arguments.wheels, scratch / "site"))
    log = arguments.out / "gpu_step.log"
    log.write_text("")
    setting = Setting(tuple(path), scratch / "cache", log)
    bench = Bench(setting, arguments.out, started + 60 * arguments.minutes)
    if arguments.smoke:
        bench.seen = dict.fromkeys(_EXPECTED, 0.0)
    size = "tiny" if arguments.smoke else arguments.size
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    bench.results.machine = {"date": now, "size": size, **smi(), "python": sys.version.split()[0]}
    return bench


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--stages", default="search,parity,rounds", type=_stages, help=", ".join(STAGES)
    )
    parser.add_argument("--size", choices=SIZES, default="1b", help="variants.py has their shapes")
    parser.add_argument("--minutes", type=float, default=9.0, help="what does not fit is skipped")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", help="variants, by semicolons (variants.py); default: the size's")
    parser.add_argument("--torch", help="likewise")
    parser.add_argument("--ablate", default=ABLATE)
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device")
    arguments = parser.parse_args()
    if arguments.ours is None:
        arguments.ours = SIZES[arguments.size].ours
    if arguments.torch is None:
        arguments.torch = SIZES[arguments.size].torch
    return arguments


STAGES = {
    "search": search,
    "parity": parity,
    "rounds": rounds,
    "largest": largest,
    "ablate": ablate,
    "trace": trace,
}


if __name__ == "__main__":
    main()
