"""Small questions to ask the planner."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxscale.config.loading import load_model
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.calibration import efficiency_of
from jaxscale.planner.model.parameters import parameter_groups
from jaxscale.planner.model.shape import Experts, ModelShape
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.exhaustive import Problem, Space
from jaxscale.planner.search.predict import predict
from jaxscale.planner.vocabulary.jaxscale_stack import jaxscale_stack
from jaxscale.planner.vocabulary.layout import Layout
from jaxscale.planner.vocabulary.prediction import Line, Prediction

MODELS = Path(__file__).parents[2] / "configs/models"
DENSE = ModelShape(
    name="dense",
    layers=8,
    embed=1024,
    heads=16,
    kv_heads=8,
    head_dim=64,
    mlp=4096,
    mlp_products=3,
    vocab=32000,
    tied=False,
)
ROUTED = ModelShape(
    **{**DENSE.__dict__, "name": "routed", "experts": Experts(8, 2, 1024, 1, 1, 4096)}
)


def problem(
    shape: ModelShape = DENSE,
    cluster: str | Cluster = "h100:4x2",
    *,
    batch: int = 64,
    sequence: int = 2048,
    space: Space | None = None,
) -> Problem:
    """A planning question of a shape on a cluster."""
    place = parse_cluster(cluster) if isinstance(cluster, str) else cluster
    return Problem(
        workload=Workload(shape, batch, sequence),
        groups=parameter_groups(shape),
        cluster=place,
        stack=jaxscale_stack(place.kind),
        efficiency=efficiency_of(place),
        space=space or Space(),
    )


def shipped(name: str) -> tuple[Path, object]:
    """A shipped model: its file and its section."""
    path = MODELS / f"{name}.yaml"
    return path, load_model(path, [])[0]


def predicted(
    cluster: str | Cluster, layout: Layout, *, shape: ModelShape = DENSE, **changes: Any
) -> Prediction:
    """Sixteen sequences of 2,048 tokens, in the trainer's stack with those changes."""
    asked = problem(shape, cluster, batch=16)
    stack = replace(asked.stack, **changes)
    return predict(asked.workload, asked.cluster, layout, stack, groups=asked.groups)


def line(prediction: Prediction, component: str) -> Line:
    """Of its times or of its bytes."""
    lines = (*prediction.time, *prediction.memory)
    return next(one for one in lines if one.component == component)


def seconds(prediction: Prediction, component: str) -> float:
    """Hidden or not."""
    found = line(prediction, component)
    return found.value + found.hidden_seconds
