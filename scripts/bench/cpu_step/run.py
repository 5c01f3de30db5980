"""Train steps on CPU, contender against contender, in rounds: each round runs each of them once, one after the other.

Only ratios within a round mean anything on a shared machine: they are what is reported, as median, least and most.
`run.py --rounds 3 --contenders torch,bare --dtype float32,bfloat16 --out DIR` writes cpu_step.json and cpu_step.md; the
first contender is what the others are compared with. `--python NAME=PATH` runs a contender by another interpreter,
`--prefix CMD` puts a command (one that waits for a quiet machine, say) before each run.
"""

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
_COLUMNS = (
    "dtype",
    "contender",
    "s/step",
    "ratio to first (least-most)",
    "first step, s",
    "RSS, GiB",
    "CPU s/step",
    "faults/step",
    "stolen",
    "others",
)


@dataclass(frozen=True)
class Run:
    """One process. Of the machine's processor time meanwhile, stolen is the share that the hypervisor gave away, and
    others what processes other than this one used: a run with much of either says little.
    """

    contender: str
    dtype: str
    round: int
    step_s: float
    first_step_s: float
    loss: float
    peak_rss_gib: float
    faults_per_step: float | None
    cpu_s_per_step: float | None
    data_wait_s: float | None
    stolen: float
    others: float


def main() -> None:
    arguments = _arguments()
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    runs = [
        _run(name, dtype, number, pythons.get(name, sys.executable), arguments)
        for dtype in arguments.dtype.split(",")
        for number in range(arguments.rounds)
        for name in arguments.contenders.split(",")
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = json.dumps([asdict(run) for run in runs], indent=1)
    (arguments.out / "cpu_step.json").write_text(rows)
    (arguments.out / "cpu_step.md").write_text(table(runs))
    print(table(runs))


def table(runs: list[Run]) -> str:
    """Markdown: one row a contender and dtype, ratios to the first contender of the same round."""
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
    ]
    keys = dict.fromkeys((run.dtype, run.contender) for run in runs)
    return "\n".join([*lines, *(_row(key, runs) for key in keys)]) + "\n"


def _row(key: tuple[str, str], runs: list[Run]) -> str:
    own = [run for run in runs if (run.dtype, run.contender) == key]
    first = [run for run in runs if (run.dtype, run.contender) == (key[0], runs[0].contender)]
    ratios = [a.step_s / b.step_s for a, b in zip(own, first, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    cells = [
        *key,
        _median(own, "step_s", ".2f"),
        spread,
        _median(own, "first_step_s", ".0f"),
        _median(own, "peak_rss_gib", ".1f"),
        _median(own, "cpu_s_per_step", ".2f"),
        _median(own, "faults_per_step", ",.0f"),
        f"{max(run.stolen for run in own):.1%}",
        f"{max(run.others for run in own):.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


def _median(runs: list[Run], name: str, form: str) -> str:
    values = [getattr(run, name) for run in runs if getattr(run, name) is not None]
    return format(statistics.median(values), form) if values else "-"


def _run(name: str, dtype: str, number: int, python: str, arguments: argparse.Namespace) -> Run:
    command = [*shlex.split(arguments.prefix), python, str(HERE / "contender.py"), name]
    command += [
        "--dtype",
        dtype,
        "--steps",
        str(arguments.steps),
        "--unroll",
        str(arguments.unroll),
    ]
    before = _Ticks.now()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    spent = _Ticks.now() - before
    timing = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{dtype} round {number}: {name} {timing['steps_s']}", file=sys.stderr)
    return Run(
        contender=name,
        dtype=dtype,
        round=number,
        step_s=statistics.median(timing.pop("steps_s")),
        stolen=spent.stolen / spent.total,
        others=max(0.0, spent.busy - spent.own) / spent.total,
        **timing,
    )


@dataclass(frozen=True)
class _Ticks:
    """Processor time of the whole machine since it started, and of this process's children, in clock ticks."""

    stolen: float
    busy: float
    total: float
    own: float

    @classmethod
    def now(cls) -> "_Ticks":
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, idle, waiting, interrupt, soft_interrupt, stolen = map(int, words)
        busy = user + nice + system + interrupt + soft_interrupt
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = (children.ru_utime + children.ru_stime) * os.sysconf("SC_CLK_TCK")
        return cls(stolen, busy, busy + idle + waiting + stolen, own)

    def __sub__(self, earlier: "_Ticks") -> "_Ticks":
        stolen, busy = self.stolen - earlier.stolen, self.busy - earlier.busy
        return _Ticks(stolen, busy, max(1, self.total - earlier.total), self.own - earlier.own)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--unroll", type=int, default=0)
    parser.add_argument("--contenders", default="torch,bare")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--prefix", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/cpu_step"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
