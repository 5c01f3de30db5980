"""What devices reach of what their data sheets say: one fitted constant a chip family, and sourced facts."""

from dataclasses import dataclass

from jaxscale.hardware.cluster import Cluster


@dataclass(frozen=True)
class Efficiency:
    """products: of peak FLOP/s in large matrix products, the one fitted constant. attention_*: of peak, fused attention.

    memory: of peak bandwidth, elementwise passes. network: of link bandwidth. error: of a step time, relative: plans
    nearer than that are ties.
    """

    products: float
    attention_forward: float
    attention_backward: float
    memory: float = 0.85
    network: float = 0.85
    error: float = 0.05
    source: str = ""


FAMILIES = {
    "tpu": Efficiency(0.85, 0.55, 0.45),
    "a100": Efficiency(0.85, 0.6, 0.5),
    "hopper": Efficiency(0.7, 0.45, 0.38),
    "blackwell": Efficiency(0.7, 0.45, 0.38),
    "cpu": Efficiency(0.7, 0.3, 0.3),
}


def efficiency_of(cluster: Cluster) -> Efficiency:
    name = cluster.chip.name.lower()
    if cluster.kind == "tpu":
        return FAMILIES["tpu"]
    if cluster.kind == "cpu":
        return FAMILIES["cpu"]
    if name.startswith("a100"):
        return FAMILIES["a100"]
    return FAMILIES["blackwell" if "b200" in name else "hopper"]
