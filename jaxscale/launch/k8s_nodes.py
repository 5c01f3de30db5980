"""The nodes that a cluster's name asks of Kubernetes: how many, with which devices, chosen by which labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from jaxscale.errors import UserError
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.hardware.cluster import Cluster

# Values of cloud.google.com/gke-tpu-accelerator (GKE, "Plan TPUs").
_ACCELERATORS = MappingProxyType({
    "v3": "tpu-v3-slice", "v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice", "v7x": "tpu7x",
})  # fmt: skip
_SINGLE_HOST = MappingProxyType({"v5e": 8, "v6e": 8})
_CHIPS_PER_NODE = 4
# A slice lives in one node pool, and a node pool is one slice.
_EXCLUSIVE = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
_SPOT = "cloud.google.com/gke-spot"


@dataclass(frozen=True)
class Nodes:
    """`groups` jobs of `per_group` pods, a node each. resources: of a pod. environment: for its process."""

    groups: int
    per_group: int
    resources: Mapping[str, str]
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    shared_memory: bool = False


def nodes_of(name: str, *, spot: bool = False) -> Nodes:
    """Nodes for `v5p:4x4x8*2`, `h100:8x4` or `cpu:8`. Raises UserError for what no cloud's nodes make up.

    spot: nodes that may be taken away, by GKE's label.
    """
    cluster = cluster_by_name(name)
    nodes = {"tpu": _tpu, "gpu": _gpu, "cpu": _cpu}[cluster.kind](cluster)
    if not spot:
        return nodes
    toleration = {"key": _SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    return Nodes(
        nodes.groups, nodes.per_group, nodes.resources, {**nodes.selector, _SPOT: "true"},
        (*nodes.tolerations, toleration), nodes.annotations, nodes.environment, nodes.shared_memory,
    )  # fmt: skip


def _tpu(cluster: Cluster) -> Nodes:
    slices = math.prod(dim.size for dim in cluster.dims if dim.slow)
    chips = cluster.num_chips // slices
    single = chips <= _SINGLE_HOST.get(cluster.family, _CHIPS_PER_NODE)
    each = chips if single else _CHIPS_PER_NODE
    if slices > 1 and single:
        raise UserError(
            f"{cluster.name}: slices of one node cannot be joined on GKE; use slices of more than {each} chips"
        )
    topology = cluster.name.partition(":")[2].partition("*")[0]
    return Nodes(
        groups=slices,
        per_group=chips // each,
        resources={"google.com/tpu": str(each)},
        selector={
            "cloud.google.com/gke-tpu-accelerator": _ACCELERATORS[cluster.family],
            "cloud.google.com/gke-tpu-topology": topology,
        },
        tolerations=({"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"},),
        annotations=_EXCLUSIVE if slices > 1 else {},
    )


def _gpu(cluster: Cluster) -> Nodes:
    nodes = math.prod(dim.size for dim in cluster.dims if dim.slow)
    return Nodes(
        groups=1,
        per_group=nodes,
        resources={"nvidia.com/gpu": str(cluster.num_devices // nodes)},
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
        shared_memory=True,
    )


def _cpu(cluster: Cluster) -> Nodes:
    """One pod that pretends to have so many devices: to try a manifest on any cluster."""
    devices = str(cluster.num_devices)
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": devices}
    return Nodes(
        1, 1, {"cpu": devices, "memory": f"{2 * cluster.num_devices}Gi"}, environment=variables
    )
