"""What the planner says of a case, by the path that `jaxscale train` takes for its own prediction."""

from dataclasses import replace
from typing import Any

from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.calibration import efficiency_of
from jaxscale.planner.measured.runs import record_of
from jaxscale.planner.model.parameters import num_parameters
from jaxscale.planner.model.source import groups_of, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.exhaustive import Problem
from jaxscale.planner.search.proposal import predict_plan, run_problem
from jaxscale.planner.vocabulary.prediction import Prediction
from planner_gpu.cases import Case

_KEPT = ("step_seconds", "peak_bytes", "usable_bytes", "mfu", "time_seconds", "memory_bytes")


def problem_of(case: Case, cluster: Cluster) -> Problem:
    """With the constants that the planner has for this cluster, whatever was measured here before."""
    config = case.config
    return run_problem(
        Workload(shape_of(config.model, case.model), case.rows, case.sequence),
        groups_of(config.model),
        cluster,
        case.plan,
        efficiency_of(cluster),
        loss_chunk=config.training.loss_chunk,
    )


def predicted(case: Case, cluster: Cluster) -> dict[str, Any]:
    """Totals and components. other_seconds: what of a step does not depend on the constant for products."""
    problem = problem_of(case, cluster)
    found = predict_plan(problem, case.plan)
    record = record_of(problem, case.plan, found, chosen_by="the benchmark")
    # Nothing overlaps on one device: a term goes with 1 / products or does not depend on it.
    halved = found.step_seconds - with_products(problem, case, 2.0).step_seconds
    return {
        **{name: record[name] for name in _KEPT},
        "parameters": num_parameters(problem.groups),
        "other_seconds": found.step_seconds - 2 * halved,
    }


def with_products(problem: Problem, case: Case, factor: float) -> Prediction:
    """The prediction if products reached `factor` times what they do."""
    products = factor * problem.efficiency.products
    efficiency = replace(problem.efficiency, products=products)
    return predict_plan(replace(problem, efficiency=efficiency), case.plan)
