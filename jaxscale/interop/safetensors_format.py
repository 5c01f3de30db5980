"""The safetensors file format: a length, a JSON header, the bytes of the tensors.

https://huggingface.co/docs/safetensors: everything in a file has its place before a single value is known.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxscale.errors import UserError

DTYPE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "float64": "F64",
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "int64": "I64",
        "int32": "I32",
        "int16": "I16",
        "int8": "I8",
        "uint64": "U64",
        "uint32": "U32",
        "uint16": "U16",
        "uint8": "U8",
        "bool": "BOOL",
    }
)
# What readers of PyTorch ask for; others do not mind.
_METADATA = MappingProxyType({"format": "pt"})
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def header_bytes(tensors: Sequence[TensorInfo]) -> bytes:
    """All that comes before the tensors, which follow in this order without gaps.

    Raises UserError for a dtype that the format does not have.
    """
    entries: dict[str, Any] = {"__metadata__": dict(_METADATA)}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": _dtype_name(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _dtype_name(tensor: TensorInfo) -> str:
    name = DTYPE_NAMES.get(tensor.dtype.name)
    if name is None:
        raise UserError(
            f"{tensor.name} is {tensor.dtype.name}, which safetensors has no name for: export with --dtype bf16 or fp32"
        )
    return name
