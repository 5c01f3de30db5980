"""The opponent: a compiled PyTorch step of the same model, batches and optimizer, in the same dtypes."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from torch_llama import Style, Weights, angles, initial_weights, loss
from variants import (
    BETAS,
    CLIP_NORM,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Measured,
    Size,
    Timing,
    Variant,
    measure,
    rate,
    text,
)

_BATCHES = 4


def _pick_attention(name: str) -> None:
    """Leave `scaled_dot_product_attention` one backend; `auto` leaves it its own choice."""
    if name == "auto":
        return
    cudnn = name.startswith("cudnn")
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_flash_sdp(not cudnn)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def _optimizer(weights: Weights) -> torch.optim.Optimizer:
    """Decay for matrices only, as in ours."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    scales = [weight for weight in weights.values() if weight.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)


def _compiled(function: Callable[..., torch.Tensor], mode: str) -> Callable[..., torch.Tensor]:
    if mode == "eager":
        return function
    chosen = None if mode == "default" else mode
    compiled: Callable[..., torch.Tensor] = torch.compile(
        function, fullgraph=True, dynamic=False, mode=chosen
    )
    return compiled


def _stepper(size: Size, variant: Variant, device: torch.device) -> Callable[[int], torch.Tensor]:
    arch = size.architecture()
    narrow = device.type == "cuda" and variant.precision != "float32"
    style = Style(
        dtype=torch.bfloat16 if narrow else torch.float32,
        checkpointed=variant.remat == "full",
        repeat=variant.attention.endswith("repeat"),
        chunk=variant.chunk,
    )
    weights = initial_weights(arch, device)
    optimizer = _optimizer(weights)
    by = angles(arch, size.sequence, device)
    compiled = _compiled(partial(loss, by=by, arch=arch, style=style), variant.torch_mode)
    batches = [
        {name: torch.from_numpy(array).long().to(device) for name, array in batch.items()}
        for batch in (text(size, variant.rows, seed) for seed in range(_BATCHES))
    ]

    def step(index: int) -> torch.Tensor:
        value = compiled(weights, **batches[index % _BATCHES])
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def run(size: Size, variant: Variant, timing: Timing, started: float) -> Measured:
    """Train and measure."""
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    _pick_attention(variant.attention if on_gpu else "auto")

    def wait(value: torch.Tensor) -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return float(value)

    result = measure(_stepper(size, variant, device), wait, timing, started)
    rate(result, size, variant.rows, torch.cuda.get_device_name() if on_gpu else "cpu")
    if on_gpu:
        result.peak_gib = torch.cuda.max_memory_allocated() / 2**30
        result.note = f"reserved {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB, "
    result.note += f"attention {variant.attention}, torch.compile {variant.torch_mode}"
    result.versions = {"torch": version("torch"), "numpy": version("numpy")}
    if on_gpu:
        cudnn: Callable[[], int] = torch.backends.cudnn.version
        result.versions["cudnn"] = str(cudnn())
        result.versions["cuda"] = str(torch.version.cuda)
    return result
