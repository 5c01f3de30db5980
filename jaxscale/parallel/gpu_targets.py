"""What XLA needs to know of a GPU to compile for one that is not there.

The numbers are those of the target configurations that XLA ships (openxla/xla, xla/backends/gpu/target_config/specs,
Apache-2.0), in the fields that the compilers of JAX 0.10 to 0.12 all read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from types import MappingProxyType


@dataclass(frozen=True)
class GpuTarget:
    """name: as the device reports itself. capability: (major, minor). memory, l2: bytes; bandwidth: bytes/s.

    clock: GHz. shared_memory: bytes of a multiprocessor, and the most that one block can have.
    """

    name: str
    capability: tuple[int, int]
    num_cores: int
    units_per_core: int
    shared_memory: tuple[int, int]
    l2: int
    bandwidth: int
    clock: float
    memory: int

    @property
    def text(self) -> str:
        """A GpuTargetConfigProto as text."""
        major, minor = self.capability
        accelerated = major >= 9
        return _TEMPLATE.substitute(
            name=self.name,
            capability=f"major: {major} minor: {minor}"
            + (" feature_extension: ACCELERATED_FEATURES" if accelerated else ""),
            platform=f"Compute Capability {major}.{minor}{'a' if accelerated else ''}",
            num_cores=self.num_cores,
            units=self.units_per_core,
            shared_core=self.shared_memory[0],
            shared_block=self.shared_memory[1],
            l2=self.l2,
            bandwidth=self.bandwidth,
            clock=self.clock,
            memory=self.memory,
        )


_TEMPLATE = Template("""gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: $shared_core
  threads_per_core_limit: 2048
  core_count: $num_cores
  fpus_per_core: $units
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: $bandwidth
  l2_cache_size: $l2
  clock_rate_ghz: $clock
  device_memory_size: $memory
  shared_memory_per_block_optin: $shared_block
  cuda_compute_capability { $capability }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "$platform"
  device_address_bits: 64
  ecc_enabled: true
  name: "$name"
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "$name"
""")

_AMPERE, _HOPPER = (167936, 166912), (233472, 232448)

# By the chip's name in `hardware.chips`.
GPU_TARGETS: Mapping[str, GpuTarget] = MappingProxyType({
    "A100 40GB": GpuTarget(
        "NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, _AMPERE, 41943040, 1555200000000, 1.41, 42331013120
    ),
    "A100 80GB": GpuTarget(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, _AMPERE, 41943040, 2039040000000, 1.41, 85100068864
    ),
    "H100 SXM": GpuTarget(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, _HOPPER, 52428800, 3352320000000, 1.98, 84942979072
    ),
    "H200": GpuTarget(
        "NVIDIA H200", (9, 0), 132, 128, _HOPPER, 52428800, 4800000000000, 1.98, 151397597184
    ),
    "B200": GpuTarget(
        "NVIDIA B200", (10, 0), 148, 128, _HOPPER, 132644864, 7672320000000, 1.965, 191514411008
    ),
    "GB200": GpuTarget(
        "NVIDIA GB200", (10, 0), 152, 128, _HOPPER, 135528448, 7928064000000, 2.062, 197897748480
    ),
})  # fmt: skip
