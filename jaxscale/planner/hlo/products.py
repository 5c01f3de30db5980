"""FLOPs of matrix products, from the shapes in a compiled program."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxscale.planner.hlo.text import Array, Computation, Instruction

# Products that cuDNN's attention makes: scores and their use; backward both operands of each, and the scores again.
_ATTENTION_PRODUCTS = {"forward": 2, "backward": 5}


def product_flops(computation: Computation, instruction: Instruction) -> float | None:
    """2 m n k of an instruction that is a matrix product, or None.

    A convolution counts the taps that fall on values, not on padding or between dilated ones: TPU programs write
    batched products as such convolutions. Of library calls, those of cuBLAS, oneDNN and cuDNN attention are known.
    """
    count = _COUNTS.get(instruction.opcode)
    return None if count is None else count(computation, instruction)


def _dot_flops(computation: Computation, dot: Instruction) -> float:
    left = computation.operand_arrays(dot)[0]
    contracted = _numbers(dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
    return 2.0 * dot.results[0].size * math.prod(left.dims[dim] for dim in contracted)


def _library_flops(computation: Computation, call: Instruction) -> float | None:
    target = call.attribute(r'custom_call_target="([^"]*)"') or ""
    for prefix, count in _LIBRARIES.items():
        if target.startswith(prefix):
            return count(computation, call)
    return None


def _cublas_flops(computation: Computation, call: Instruction) -> float:
    left = computation.operand_arrays(call)[0]
    contracted = _quoted(call, "lhs_contracting_dimensions")
    return 2.0 * call.results[0].size * math.prod(left.dims[dim] for dim in contracted)


def _onednn_flops(computation: Computation, call: Instruction) -> float:
    """Rows of the left operand are those of the result, whichever of its dims they are."""
    left, result = computation.operand_arrays(call)[0], call.results[0]
    return 2.0 * left.size * result.dims[-1]


def _attention_flops(_computation: Computation, call: Instruction) -> float:
    """Over the whole square of scores, half of it where the kernel skips what a causal mask hides."""
    backward = "Backward" in call.attributes.partition('custom_call_target="')[2].partition('"')[0]
    products = _ATTENTION_PRODUCTS["backward" if backward else "forward"]
    scores = math.prod(_quoted(call, "dimensions"))
    head_dim = call.results[0].dims[-1]
    part = 0.5 if call.attribute(r'"mask_type":\s*"(CAUSAL)"') else 1.0
    return 2.0 * products * scores * head_dim * part


@dataclass(frozen=True)
class _Window:
    """One spatial dim of a convolution: kernel size and how it moves over the input."""

    size: int = 1
    stride: int = 1
    low: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1

    def taps(self, num_inputs: int, num_outputs: int) -> int:
        """Pairs of an output and a kernel position that meet an input value."""
        extent = (num_inputs - 1) * self.input_dilation
        places = (
            out * self.stride + tap * self.kernel_dilation - self.low
            for out in range(num_outputs)
            for tap in range(self.size)
        )
        return sum(0 <= place <= extent and place % self.input_dilation == 0 for place in places)


def _convolution_flops(computation: Computation, convolution: Instruction) -> float:
    inputs, kernel = computation.operand_arrays(convolution)[:2]
    output = convolution.results[0]
    labels = convolution.attribute(r"dim_labels=([\w?]+->[\w?]+)") or ""
    input_labels, kernel_labels, output_labels = re.split(r"_|->", labels)
    spatial = sorted(label for label in kernel_labels if label.isdigit())
    windows = _windows(convolution, len(spatial))
    taps = math.prod(
        window.taps(_size(inputs, input_labels, label), _size(output, output_labels, label))
        for window, label in zip(windows, spatial, strict=True)
    )
    kept = _size(output, output_labels, "b") * _size(output, output_labels, "f")
    return 2.0 * kept * _size(kernel, kernel_labels, "i") * taps


def _size(array: Array, labels: str, label: str) -> int:
    return array.dims[labels.index(label)]


def _windows(convolution: Instruction, num_spatial: int) -> list[_Window]:
    text = convolution.attribute(r"window=\{([^}]*)\}") or ""
    named = dict(part.split("=") for part in text.split())
    sizes = _by_dim(named.get("size"), "1", num_spatial)
    strides = _by_dim(named.get("stride"), "1", num_spatial)
    pads = _by_dim(named.get("pad"), "0_0", num_spatial)
    inputs = _by_dim(named.get("lhs_dilate"), "1", num_spatial)
    kernels = _by_dim(named.get("rhs_dilate"), "1", num_spatial)
    columns = zip(sizes, strides, pads, inputs, kernels, strict=True)
    return [
        _Window(int(size), int(stride), int(pad.split("_")[0]), int(inner), int(outer))
        for size, stride, pad, inner, outer in columns
    ]


def _by_dim(text: str | None, default: str, num_spatial: int) -> list[str]:
    return text.split("x") if text else [default] * num_spatial


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


def _quoted(call: Instruction, key: str) -> list[int]:
    """A list of numbers in a backend configuration, where they are printed as strings."""
    return _numbers(call.attribute(rf'"{key}":\s*\[([^\]]*)\]'))


_Count = Callable[[Computation, Instruction], float | None]
_COUNTS: Mapping[str, _Count] = {
    "dot": _dot_flops,
    "convolution": _convolution_flops,
    "custom-call": _library_flops,
}
_LIBRARIES: Mapping[str, _Count] = {
    "__cublas$": _cublas_flops,
    "__onednn$matmul": _onednn_flops,
    "__cudnn$fmha": _attention_flops,
}
