"""GPU clusters: nodes of GPUs behind NVSwitch, nodes behind one InfiniBand or Ethernet fabric.

`h100:8x4` is 4 nodes of 8. Bandwidths are what one GPU sends in one direction.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxscale.errors import UserError
from jaxscale.hardware.chips import Chip
from jaxscale.hardware.cluster import Cluster, Dim

NVLINK_LATENCY = 1.9e-6
NETWORK_LATENCY = 4e-6
LATENCY_SOURCE = "latency: NCCL src/graph/tuning.cc, hwLat of the ring with LL128"
# Our assumption: a CUDA context (about 0.5 GiB on H100) and the libraries' workspaces.
CONTEXT = 0.75 * 2**30
PCIE_4, PCIE_5 = 32e9, 64e9
MAX_NODES = 4096


@dataclass(frozen=True)
class GpuFamily:
    """Nodes of up to `node` GPUs.

    nvlink, nic: bytes/s a GPU, one way. visible: bytes that CUDA reports as a GPU's memory. host_bandwidth: bytes/s of
    a GPU to its host. whole_nodes: sizes count nodes (`selene:128`), and a node is full. per_host: GPUs of one host.
    """

    name: str
    chip: Chip
    node: int
    nvlink: float
    nvlink_source: str
    nic: float
    nic_source: str
    visible: float
    host_bandwidth: float = PCIE_5
    network: str = "InfiniBand"
    whole_nodes: bool = False
    per_host: int = 8

    @property
    def usable(self) -> float:
        """Bytes that a program may take: what CUDA reports less the CUDA context and library workspaces.

        JAX takes 75 % of it unless XLA_PYTHON_CLIENT_MEM_FRACTION says more; a plan counts on that being set.
        """
        return self.visible - CONTEXT


def gpu_cluster(family: GpuFamily, per_node: int, num_nodes: int) -> Cluster:
    """`num_nodes` nodes, each with `per_node` GPUs. Raises UserError where a node has no room for them."""
    name = gpu_name(family, per_node, num_nodes)
    if not 1 <= per_node <= family.node:
        nodes = max(1, -(-per_node // family.node))
        near = gpu_name(family, family.node, nodes)
        raise UserError(
            f"{name}: a node of {family.name} has 1 to {family.node} GPUs, not {per_node}; nearest: {near}"
        )
    if not 1 <= num_nodes <= MAX_NODES:
        raise UserError(f"{name}: {family.name} takes 1 to {MAX_NODES:,} nodes, not {num_nodes:,}")
    return Cluster(
        name=name,
        kind="gpu",
        chip=family.chip,
        dims=_dims(family, per_node, num_nodes),
        usable_hbm=family.usable,
        host_bandwidth=family.host_bandwidth,
        devices_per_host=min(per_node, family.per_host),
        family=family.name,
    )


def gpu_name(family: GpuFamily, per_node: int, num_nodes: int) -> str:
    if family.whole_nodes and per_node == family.node:
        return f"{family.name}:{num_nodes}"
    # Where one number would count nodes, a part of one node is written with both.
    both = num_nodes != 1 or family.whole_nodes
    return f"{family.name}:{per_node}x{num_nodes}" if both else f"{family.name}:{per_node}"


def gpu_sizes(family: GpuFamily, per_node: int, num_nodes: int) -> Iterator[tuple[int, int]]:
    """(GPUs a node, nodes) of larger clusters, growing: a fuller node, then more nodes."""
    if num_nodes == 1:
        steps = dict.fromkeys([*growing_counts(family.node), family.node])
        yield from ((step, 1) for step in steps if step > per_node)
        per_node = family.node
    yield from ((per_node, nodes) for nodes in growing_counts(MAX_NODES) if nodes > num_nodes)


def growing_counts(largest: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ...: 2^n and 3 x 2^n, which axes and batches divide."""
    yield 1
    power = 2
    while power <= largest:
        yield power
        if power * 3 // 2 <= largest:
            yield power * 3 // 2
        power *= 2


def _dims(family: GpuFamily, per_node: int, num_nodes: int) -> tuple[Dim, ...]:
    node = Dim(
        "node", per_node, "NVLink", "switch", family.nvlink, NVLINK_LATENCY,
        f"{family.nvlink_source}; {LATENCY_SOURCE}",
    )  # fmt: skip
    nodes = Dim(
        "nodes", num_nodes, family.network, "switch", family.nic, NETWORK_LATENCY,
        f"{family.nic_source}; {LATENCY_SOURCE}", slow=True,
    )  # fmt: skip
    return tuple(dim for dim in (node, nodes) if dim.size > 1)
