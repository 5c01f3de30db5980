"""Everything that waits for a GPU, one part after another: `all.py --out DIR --wheels .whl`. See README.md.

`kernels`: every kernel of ours beside what runs untuned, then fp8 products and norms (9 minutes at most). `step`: the
train step of Llama-3.2-1B beside PyTorch's (9.5). `shapes`: the same of two other shapes (9.5). `largest`: the most
rows that fit (9.5). `planner`: predictions beside steps (9). Each part writes into a folder of its own as it goes.
`--parts` runs some of them alone, where a machine is lent for ten minutes at a time. Exit status 1 if a program's is
not 0.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wheels import unpacked

BENCH = Path(__file__).resolve().parents[1]
ROOT = BENCH.parents[1]


@dataclass(frozen=True)
class Program:
    """path: in `scripts/bench`. minutes: after which it is stopped; programs with `--minutes` stop themselves before.

    arguments: `{out}` is the part's folder. smoke: those that make it tiny.
    """

    path: str
    arguments: tuple[str, ...]
    minutes: float
    smoke: tuple[str, ...] = ("--smoke",)


def _shape(size: str) -> Program:
    timed = ("--minutes", "4.5", "--rounds", "2", "--stages", "search,rounds")
    return Program("gpu/run.py", ("--size", size, *timed, "--out", f"{{out}}/{size}"), 4.75)


PARTS: Mapping[str, Sequence[Program]] = {
    "kernels": (
        Program("gpu/products.py", ("--out", "{out}", "--minutes", "6"), 7),
        Program(
            "kernels/run.py",
            ("--ops", "fp8", "norm", "--out", "{out}/forms.json"),
            2,
            ("--rounds", "1"),
        ),
    ),
    "step": (Program("gpu/run.py", ("--out", "{out}", "--minutes", "9"), 9.5),),
    "shapes": (_shape("1b-128"), _shape("8b-layers")),
    "largest": (
        Program("gpu/run.py", ("--stages", "largest", "--minutes", "9", "--out", "{out}"), 9.5),
    ),
    "planner": (Program("planner_gpu", ("--out", "{out}", "--minutes", "8"), 9),),
}


def main() -> None:
    arguments = _arguments()
    path = [ROOT]
    if arguments.wheels is not None:
        site = Path(tempfile.gettempdir()) / "jaxscale-bench-all" / "site"
        path.append(unpacked(arguments.wheels, site))
    statuses = {
        f"{part} {program.path}": _run(program, arguments.out / part, path, smoke=arguments.smoke)
        for part in arguments.parts
        for program in PARTS[part]
    }
    for name, status in statuses.items():
        print(f"{name}: {status}")
    raise SystemExit(0 if set(statuses.values()) == {"done"} else 1)


def _run(program: Program, out: Path, path: Sequence[Path], *, smoke: bool) -> str:
    """Its own process, since each of them wants the GPU's memory for itself. Returns how it ended."""
    out.mkdir(parents=True, exist_ok=True)
    given = [argument.format(out=out) for argument in program.arguments]
    command = [sys.executable, str(BENCH / program.path), *given, *(program.smoke if smoke else ())]
    here = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*map(str, path), *([here] if here else [])])
    environment = {**os.environ, "PYTHONPATH": joined, "PYTHONUNBUFFERED": "1"}
    print(f"== {' '.join(command[1:])}", flush=True)
    try:
        done = subprocess.run(
            command, env=environment, check=False, timeout=60 * program.minutes
        ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {program.minutes:g} minutes"
    return "done" if done == 0 else f"exit status {done}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts' folders")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device")
    return parser.parse_args()


if __name__ == "__main__":
    main()
