"""A cluster as the planner sees it: devices in a grid of physical dims, each dim with its own network.

Everything is counted in *JAX devices* (a TPU7x chip is two of them; then the innermost dim has size 2).
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxscale.hardware.chips import Chip

# ring: both directions carry data all the way round. line: a torus dim too short to wrap. switch: everyone to everyone.
Wiring = Literal["ring", "line", "switch"]


@dataclass(frozen=True)
class Dim:
    """One physical dim of a cluster.

    bandwidth: bytes/s that one device sends one way along this dim (one link of a torus; all of a switch port).
    latency: seconds a hop. slow: between nodes or slices.
    """

    name: str
    size: int
    network: str
    wiring: Wiring
    bandwidth: float
    latency: float
    source: str
    slow: bool = False


@dataclass(frozen=True)
class Cluster:
    """kind: `tpu`, `gpu` or `cpu`. dims: fastest (innermost) first; at most the last one is slow.

    usable_hbm: bytes of a device that a program may take. devices_per_chip: JAX devices. host_bandwidth: bytes/s
    between a device and its host's memory. devices_per_host: how many share a host.
    family: what the catalogue calls clusters of this kind (`h100`, `v5p`, `selene`), empty for one's own.
    """

    name: str
    kind: Literal["tpu", "gpu", "cpu"]
    chip: Chip
    dims: tuple[Dim, ...]
    usable_hbm: float
    host_bandwidth: float
    devices_per_host: int
    devices_per_chip: int = 1
    family: str = ""

    @property
    def num_devices(self) -> int:
        return math.prod(dim.size for dim in self.dims)

    @property
    def num_chips(self) -> int:
        return self.num_devices // self.devices_per_chip
