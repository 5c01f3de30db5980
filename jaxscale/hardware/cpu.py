"""`cpu:N`: N devices that share one host. For plans that are run to see that they are right, not how fast they are."""

import os
from types import MappingProxyType

from jaxscale.errors import UserError
from jaxscale.hardware.chips import Chip
from jaxscale.hardware.cluster import Cluster, Dim

_PLACEHOLDER = (
    "a placeholder for plans of correctness: nobody measured it, and no speed is claimed from it"
)
MAX_CPU_DEVICES = 512
DEFAULT_HOST_MEMORY = 16 * 2**30

CPU = Chip(
    name="CPU device",
    kind_patterns=(),
    # About what one AVX2 core does in float32 at 3 GHz: 2 units x 8 lanes x 2 operations.
    peak_flops=MappingProxyType({"bfloat16": 100e9, "float16": 100e9, "float32": 100e9}),
    hbm_bytes=DEFAULT_HOST_MEMORY,
    # One channel of DDR4-3200.
    hbm_bandwidth=25.6e9,
    source=_PLACEHOLDER,
)


def cpu_cluster(num_devices: int) -> Cluster:
    """N devices that share the memory of this machine equally."""
    if not 1 <= num_devices <= MAX_CPU_DEVICES:
        raise UserError(f"cpu:{num_devices}: one host shows 1 to {MAX_CPU_DEVICES} CPU devices")
    # A collective between CPU devices is a copy: one read and one write of the same memory.
    shared = Dim("host", num_devices, "shared memory", "switch", 10e9, 1e-5, _PLACEHOLDER)
    return Cluster(
        name=f"cpu:{num_devices}",
        kind="cpu",
        chip=CPU,
        dims=(shared,) if num_devices > 1 else (),
        usable_hbm=host_memory() / num_devices,
        host_bandwidth=10e9,
        devices_per_host=num_devices,
        family="cpu",
    )


def host_memory() -> float:
    """Bytes of this machine's physical memory; 16 GiB where the system does not say."""
    names = os.sysconf_names if hasattr(os, "sysconf") else {}
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return DEFAULT_HOST_MEMORY
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
