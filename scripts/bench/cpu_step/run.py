"""Train steps on CPU, contender against contender, in rounds: each round runs each of them once, one after the other.

Only ratios within a round mean anything on a shared machine: they are what is reported, as median, least and most.
`run.py --rounds 3 --contenders torch,bare --dtype float32,bfloat16 --out DIR` writes cpu_step.json and cpu_step.md; the
first contender is what the others are compared with. `--python NAME=PATH` runs a contender by another interpreter,
`--prefix CMD` puts a command (one that waits for a quiet machine, say) before each run.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One process. stolen: share of the machine's processor time that the hypervisor gave to others meanwhile."""

    contender: str
    dtype: str
    round: int
    step_s: float
    first_step_s: float
    loss: float
    peak_rss_gib: float
    faults_per_step: float
    cpu_s_per_step: float
    stolen: float


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
        "| dtype | contender | s/step | ratio to first (least-most) | first step, s | RSS, GiB "
        "| CPU s/step | faults/step | stolen |",
        "|---|---|---|---|---|---|---|---|---|",
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
        f"{_median(own, 'step_s'):.2f}",
        spread,
        f"{_median(own, 'first_step_s'):.0f}",
        f"{_median(own, 'peak_rss_gib'):.1f}",
        f"{_median(own, 'cpu_s_per_step'):.2f}",
        f"{_median(own, 'faults_per_step'):,.0f}",
        f"{max(run.stolen for run in own):.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


def _median(runs: list[Run], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


def _run(name: str, dtype: str, number: int, python: str, arguments: argparse.Namespace) -> Run:
    command = [*shlex.split(arguments.prefix), python, str(HERE / "contender.py"), name]
    command += ["--dtype", dtype, "--steps", str(arguments.steps)]
    before = _processor_time()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    after = _processor_time()
    timing = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{dtype} round {number}: {name} {timing['steps_s']}", file=sys.stderr)
    return Run(
        contender=name,
        dtype=dtype,
        round=number,
        step_s=statistics.median(timing.pop("steps_s")),
        stolen=(after[0] - before[0]) / max(1, after[1] - before[1]),
        **timing,
    )


def _processor_time() -> tuple[int, int]:
    """Stolen and total processor time so far, in ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--contenders", default="torch,bare")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--prefix", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
