"""The GPU clusters that have names: by chip, by published system, by cloud machine type; each with its sources."""

from types import MappingProxyType

from jaxscale.hardware.chips import (
    A100_40GB,
    A100_80GB,
    B200,
    GB200,
    H100_96GB,
    H100_SXM,
    H200,
    H800,
    Chip,
)
from jaxscale.hardware.gpu import PCIE_4, PCIE_5, GpuFamily

GIB = 2**30
_BOOK = "How to Scale Your Model, 'GPUs' (gpus.md)"
_HDR = "NVIDIA DGX A100 datasheet: eight 200 Gb/s HDR adapters a node of eight"
_NDR = "NVIDIA DGX H100 and B200 datasheets: eight 400 Gb/s adapters a node of eight; " + _BOOK
_DEEPSEEK = "DeepSeek-V3 (arXiv:2412.19437) section 3.2.2"
_GOOGLE = "Compute Engine, 'Networking and GPU machines'"
_AMAZON = "Amazon EC2, 'Accelerated computing instances'"
_AZURE = "Azure virtual machines, sizes of the ND family"

# GiB of a GPU as CUDA counts them: the `total capacity` that PyTorch prints when it runs out of memory. Drivers differ
# by 0.1 GiB (79.10 to 79.19 for H100, 139.72 to 139.81 for H200): the smallest seen. B200: cudaGetDeviceProperties,
# quoted in pytorch/ao. GB200 and the H100 of 96 GB: what nvidia-smi prints (189,471 and 97,871 MiB), less the 0.75 GiB
# by which the two differ on B200.
_VISIBLE = MappingProxyType({
    A100_40GB.name: 39.39, A100_80GB.name: 79.15, H100_SXM.name: 79.10, H800.name: 79.10,
    H100_96GB.name: 94.83, H200.name: 139.72, B200.name: 178.35, GB200.name: 184.28,
})  # fmt: skip
# Bytes/s of NVLink, one way, of one GPU.
_NVLINK = MappingProxyType({
    A100_40GB.name: 300e9, A100_80GB.name: 300e9, H100_SXM.name: 450e9, H100_96GB.name: 450e9,
    H200.name: 450e9, B200.name: 900e9, GB200.name: 900e9, H800.name: 160e9,
})  # fmt: skip


def _family(
    name: str,
    chip: Chip,
    nic: float,
    nic_source: str,
    *,
    node: int = 8,
    network: str = "InfiniBand",
    nvlink_source: str = _BOOK,
    host_bandwidth: float | None = None,
    whole_nodes: bool = False,
    per_host: int = 8,
) -> GpuFamily:
    pcie = PCIE_4 if chip.name.startswith("A100") else PCIE_5
    return GpuFamily(
        name=name,
        chip=chip,
        node=node,
        nvlink=_NVLINK[chip.name],
        nvlink_source=nvlink_source,
        nic=nic,
        nic_source=nic_source,
        visible=_VISIBLE[chip.name] * GIB,
        host_bandwidth=host_bandwidth or pcie,
        network=network,
        whole_nodes=whole_nodes,
        per_host=per_host,
    )


def _system(
    name: str, chip: Chip, nic: float, source: str, *, network: str = "InfiniBand", node: int = 8
) -> GpuFamily:
    return _family(
        name, chip, nic, source, network=network, node=node, whole_nodes=True, per_host=node
    )


BY_CHIP = (
    _family("a100", A100_80GB, 25e9, _HDR),
    _family("a100-40", A100_40GB, 25e9, _HDR),
    _family("h100", H100_SXM, 50e9, _NDR),
    _family("h200", H200, 50e9, _NDR),
    _family("b200", B200, 50e9, _NDR),
    # A tray is a host of four GPUs; 450 GB/s one way between a Grace CPU and its two (NVLink-C2C).
    _family(
        "gb200", GB200, 50e9, _BOOK + ": 3.6 TB/s a node of 72", node=72, per_host=4, host_bandwidth=225e9,
    ),
    _family(
        "h800", H800, 50e9, _DEEPSEEK,
        nvlink_source=_DEEPSEEK + ": 160 GB/s in use; half of the board's 400 GB/s would be 200",
    ),
)  # fmt: skip

PUBLISHED = (
    _system(
        "selene", A100_80GB, 25e9,
        "Narayanan et al. 2021 (arXiv:2104.04473) section 5: eight 200 Gb/s HDR adapters a node",
    ),
    _system(
        "jean_zay", A100_80GB, 50e9 / 8,
        "BLOOM (bigscience tr11-176B): four 100 Gb/s Omni-Path links a node", network="Omni-Path",
    ),
    _system(
        "torchtitan_grand_teton", H100_96GB, 50e9,
        "torchtitan benchmarks/llama3_h100_202412_torchtitan.md: 400 Gb/s RoCE a GPU", network="RoCE",
    ),
    _system(
        "mosaic_a100", A100_80GB, 25e9,
        "llm-foundry scripts/train/benchmarking/README.md: 1600 Gb/s a node", network="RoCE",
    ),
    _system(
        "mosaic_a100_40", A100_40GB, 25e9,
        "llm-foundry scripts/train/benchmarking/README.md: 1600 Gb/s a node", network="RoCE",
    ),
    _system(
        "llama3_roce", H100_SXM, 50e9,
        "Llama 3 (arXiv:2407.21783) section 3.3.1: 400 Gb/s RoCE a GPU; beyond a pod of 3,072 GPUs the fabric is"
        " oversubscribed 1:7, which is not modelled", network="RoCE",
    ),
    _system("dgx_h100_superpod", H100_SXM, 50e9, _NDR),
)  # fmt: skip

CLOUD = (
    _system("a2-highgpu-8g", A100_40GB, 12.5e9 / 8, _GOOGLE + ": 100 Gb/s a machine", network="Ethernet"),
    _system("a2-megagpu-16g", A100_40GB, 12.5e9 / 16, _GOOGLE + ": 100 Gb/s a machine", network="Ethernet", node=16),
    _system("a2-ultragpu-8g", A100_80GB, 12.5e9 / 8, _GOOGLE + ": 100 Gb/s a machine", network="Ethernet"),
    _system(
        "a3-highgpu-8g", H100_SXM, 12.5e9,
        _GOOGLE + ": four 200 Gb/s adapters for the GPUs of a machine, a fifth for its host", network="GPUDirect-TCPX",
    ),
    _system(
        "a3-megagpu-8g", H100_SXM, 25e9,
        _GOOGLE + ": eight 200 Gb/s adapters for the GPUs of a machine", network="GPUDirect-TCPXO",
    ),
    _system("a3-ultragpu-8g", H200, 50e9, _GOOGLE + ": eight 400 Gb/s adapters for the GPUs", network="RoCE"),
    _system("a4-highgpu-8g", B200, 50e9, _GOOGLE + ": eight 400 Gb/s adapters for the GPUs", network="RoCE"),
    _system("p4d.24xlarge", A100_40GB, 50e9 / 8, _AMAZON + ": 400 Gb/s a machine", network="EFA"),
    _system("p4de.24xlarge", A100_80GB, 50e9 / 8, _AMAZON + ": 400 Gb/s a machine", network="EFA"),
    _system("p5.48xlarge", H100_SXM, 50e9, _AMAZON + ": 3,200 Gb/s a machine", network="EFA"),
    _system("p5e.48xlarge", H200, 50e9, _AMAZON + ": 3,200 Gb/s a machine", network="EFA"),
    _system("p5en.48xlarge", H200, 50e9, _AMAZON + ": 3,200 Gb/s a machine", network="EFA"),
    _system("p6-b200.48xlarge", B200, 50e9, _AMAZON + ": 3,200 Gb/s a machine", network="EFA"),
    _system("nd96asr_v4", A100_40GB, 25e9, _AZURE + ": 200 Gb/s HDR a GPU"),
    _system("nd96amsr_a100_v4", A100_80GB, 25e9, _AZURE + ": 200 Gb/s HDR a GPU"),
    _system("nd96isr_h100_v5", H100_SXM, 50e9, _AZURE + ": 400 Gb/s NDR a GPU"),
    _system("nd96isr_h200_v5", H200, 50e9, _AZURE + ": 400 Gb/s NDR a GPU"),
)  # fmt: skip

GPU_FAMILIES = MappingProxyType({family.name: family for family in (*BY_CHIP, *PUBLISHED, *CLOUD)})
