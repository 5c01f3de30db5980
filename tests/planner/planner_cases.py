"""Small questions to ask the planner."""

from pathlib import Path

from jaxscale.config.loading import load_model
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.calibration import efficiency_of
from jaxscale.planner.jaxscale_stack import jaxscale_stack
from jaxscale.planner.model_shape import Experts, ModelShape
from jaxscale.planner.parameters import parameter_groups
from jaxscale.planner.search import Problem, Space
from jaxscale.planner.workload import Workload

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
