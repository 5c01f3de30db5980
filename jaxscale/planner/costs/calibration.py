"""What devices reach of what their data sheets say.

One constant a chip family (`products`) and one a software stack are fitted, to published step times
(`scripts/bench/planner_fit`, docs/planner.md); everything else has a source of its own. Nothing is fitted to a single
row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from jaxscale.hardware.cluster import Cluster


@dataclass(frozen=True)
class Efficiency:
    """products: of peak FLOP/s, reached in large matrix products; the fitted constant.

    attention_forward, attention_backward: of that, in fused attention. memory: of peak bandwidth, in elementwise
    passes.
    network: of link bandwidth, in collectives. power: of peak FLOP/s, what a cap of the board's power leaves.
    error: of a step time, relative: plans nearer than that are ties.
    memory_error: of a peak, relative: what a plan leaves free.
    """

    products: float
    attention_forward: float
    attention_backward: float
    memory: float = 0.85
    network: float = 0.85
    power: float = 1.0
    error: float = 0.05
    memory_error: float = 0.05
    source: str = ""


# FlashAttention-2 (arXiv:2307.08691, figures 4 to 6): on A100 up to 73 % of peak forward and 63 % backward, where
# products reach 80 to 90 %; on H100 the same kernel reaches about 335 TFLOP/s in all, half of what products do.
_AMPERE = {"attention_forward": 0.8, "attention_backward": 0.7}
_HOPPER = {"attention_forward": 0.65, "attention_backward": 0.5}
# No source: between Ampere and Hopper, for the splash kernel's blocks of 512 by 512.
_TPU = {"attention_forward": 0.65, "attention_backward": 0.55}
_FITTED = "median of published step times, scripts/bench/planner_fit"

FAMILIES: Mapping[str, Efficiency] = MappingProxyType(
    {
        "v3": Efficiency(0.76, **_TPU, source="taken from v4: no published row with a mesh"),
        "v4": Efficiency(0.76, **_TPU, source=_FITTED),
        "v5e": Efficiency(0.84, **_TPU, source=_FITTED),
        "v5p": Efficiency(0.72, **_TPU, source=_FITTED),
        "v6e": Efficiency(0.68, **_TPU, source=_FITTED),
        "v7x": Efficiency(0.60, **_TPU, source=_FITTED),
        "a100": Efficiency(0.79, **_AMPERE, source=_FITTED),
        "hopper": Efficiency(0.63, **_HOPPER, source=_FITTED),
        "blackwell": Efficiency(0.63, **_HOPPER, source="taken from hopper: no published row"),
        "cpu": Efficiency(0.7, 0.5, 0.5, source="no claim: CPU devices share one machine"),
    }
)
# A factor on the chip family's; a stack that is not here, ours too, has 1. DeepSpeed's is Megatron's, whose code it ran
# in (Narayanan et al. 2021, section 5.2): its own constant is below.
STACK_EFFICIENCY: Mapping[str, float] = MappingProxyType(
    {
        "llm-foundry": 1.05,
        "maxtext": 1.03,
        "megatron": 1.11,
        "torchtitan": 0.82,
    }
)
# What gathers reach of the links, of stacks whose constant that is (`Stack.gather_share`). ZeRO 3 in Megatron: its
# steps last 67 s on 768 GPUs and on 1,536 (Narayanan et al. 2021, table 2), so that links bind, at 16 GB/s a GPU: what
# one of a node's eight adapters would give. No source says why.
GATHER_SHARE: Mapping[str, float] = MappingProxyType({"deepspeed": 0.098})
# Seconds of a layer's forward pass whatever its sizes, of stacks whose constant that is (`Stack.layer_seconds`).
# BLOOM's steps get 7 to 9 % shorter from microbatches of 2 to those of 4, which no factor on products follows.
LAYER_SECONDS: Mapping[str, float] = MappingProxyType({"megatron-deepspeed": 0.0037})
# What a cap of its power leaves of a chip's peak. NVIDIA sells the same H100 at 400 W (NVL, 835 TFLOP/s) and at 700 W
# (SXM, 989): these differ by the watts to the power of 0.30, so that 500 W leave 0.90. An assumption: torchtitan's
# authors say of that board only that its peak "is between SXM and NVL", and that they do not know it.
_POWER = {"H100 96GB HBM2e": 0.90}
# By the words of a chip's name, the more special first.
_FAMILY_BY_NAME = (
    ("tpu v3", "v3"),
    ("tpu v4", "v4"),
    ("tpu v5e", "v5e"),
    ("tpu v5p", "v5p"),
    ("tpu v6e", "v6e"),
    ("tpu v7x", "v7x"),
    ("a100", "a100"),
    ("b200", "blackwell"),
)


def matrix_unit(cluster: Cluster) -> int:
    """Rows and columns of a TPU's matrix unit, else 0.

    Source: Austin et al. 2025, "How to Think About TPUs": 256 from v6e on.
    """
    if cluster.kind != "tpu":
        return 0
    return 256 if family_of(cluster) in {"v6e", "v7x"} else 128


def family_of(cluster: Cluster) -> str:
    """The chip family that a cluster is calibrated as."""
    if cluster.kind == "cpu":
        return "cpu"
    name = cluster.chip.name.lower()
    found = (family for words, family in _FAMILY_BY_NAME if words in name)
    return next(found, "v5p" if cluster.kind == "tpu" else "hopper")


def efficiency_of(cluster: Cluster) -> Efficiency:
    return replace(FAMILIES[family_of(cluster)], power=_POWER.get(cluster.chip.name, 1.0))
