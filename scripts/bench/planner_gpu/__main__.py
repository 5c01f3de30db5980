"""The planner's step time and peak memory against one GPU: `python scripts/bench/planner_gpu --out DIR`. See README.md.

Every plan is measured in a process of its own, so that its peak is its own. planner_gpu.json, planner_gpu.md and
planner_gpu.log are written after each. Exit status 1 if plans have no result, or the device is another than predicted.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Ours and the scoring of `planner_truth`; `launch` and `variants` of the other GPU benchmark; jaxscale.
PATH = [HERE.parent, HERE.parent / "gpu", HERE.parents[2]]
SCRATCH = Path(tempfile.gettempdir()) / "jaxscale-bench-planner-gpu"


def main() -> None:
    started = time.time()
    arguments = _arguments()
    path = list(PATH)
    if arguments.wheels is not None:
        sys.path.append(str(HERE.parent / "gpu"))
        from wheels import unpacked

        path.append(unpacked(arguments.wheels, SCRATCH / "site"))
    sys.path[:1] = [str(folder) for folder in path]
    arguments.out.mkdir(parents=True, exist_ok=True)
    raise SystemExit(run(arguments, path, started))


def run(arguments: argparse.Namespace, path: list[Path], started: float) -> int:
    """After the path is set: everything else is imported here."""
    platform = "cpu" if arguments.smoke else os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"  # Of this process, which predicts; the GPU is for others.
    from launch import Setting

    from jaxscale.hardware.catalogue import parse_cluster
    from planner_gpu.bench import Bench, Options
    from planner_gpu.cases import CASES, SMOKE, parse_case

    names = arguments.plans or (SMOKE if arguments.smoke else CASES)
    cluster = "cpu:1" if arguments.smoke else arguments.on
    child = ["--warmup=1", "--groups=2", "--steps=1"] if arguments.smoke else []
    child += [f"--ahead={cluster}"] if arguments.ahead else []
    log = arguments.out / "planner_gpu.log"
    log.write_text("")
    bench = Bench(
        [parse_case(name) for name in names.split(";")],
        parse_cluster(cluster),
        Setting(tuple(path), SCRATCH / "cache", log),
        Options(arguments.out, started, arguments.minutes, tuple(child), platform),
    )
    bench.run()
    print((arguments.out / "planner_gpu.md").read_text())
    return 1 if bench.problems() else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="planner_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--on", default="h200:1", help="the cluster to predict for")
    parser.add_argument("--plans", help="by semicolons, as `1b 8x2048/4 none` (cases.py)")
    parser.add_argument("--minutes", type=float, default=8.0, help="what does not fit is left out")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--ahead", action="store_true", help="compile only, without a GPU")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape on CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
