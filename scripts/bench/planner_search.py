"""How long the search takes and how much memory: `python scripts/bench/planner_search.py`. Times the search alone."""

import resource
import time
from pathlib import Path

from jaxscale.config.loading import load_model
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.planner.costs.calibration import efficiency_of
from jaxscale.planner.model.source import groups_of, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.answer import answer
from jaxscale.planner.search.exhaustive import Problem, Space
from jaxscale.planner.vocabulary.jaxscale_stack import jaxscale_stack

CONFIGS = Path(__file__).parents[2] / "configs"
CASES = (
    ("models/llama3.1-405b.yaml", "h100:8x2048", 2048, 8192),
    ("planned/deepseek-v3.yaml", "v5p:16x16x16", 8192, 4096),
    ("models/llama3.1-405b.yaml", "h100:8x1260", 10080, 8192),
    ("models/llama3-8b.yaml", "h100:8x4", 512, 8192),
)
ROUNDS = 3


def main() -> None:
    for name, place, batch, sequence in CASES:
        section, _ = load_model(CONFIGS / name, [])
        cluster = parse_cluster(place)
        problem = Problem(
            workload=Workload(shape_of(section, name), batch, sequence),
            groups=groups_of(section),
            cluster=cluster,
            stack=jaxscale_stack(cluster.kind),
            efficiency=efficiency_of(cluster),
            space=Space(),
        )
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            found = answer(problem)
            times.append(time.perf_counter() - started)
        spent = " ".join(f"{seconds:.2f}" for seconds in times)
        print(f"{name} on {place}: {found.num_candidates:,} candidates, {spent} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB (JAX imported)")


if __name__ == "__main__":
    main()
