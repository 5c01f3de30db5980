"""Mesh axes in every spelling -> ours."""

import re
from collections.abc import Mapping
from typing import Any

# Axes that several names share multiply: data over slices and inside them, FSDP in both directions.
_NAMES = {
    "data": "data", "dp": "data", "dp_replicate": "data", "replica": "data", "d": "data",
    "fsdp": "fsdp", "fsdp_transpose": "fsdp", "zero3": "fsdp", "dp_shard": "fsdp", "hsdp": "fsdp",
    "tensor": "tensor", "tp": "tensor", "model": "tensor", "mp": "tensor", "t": "tensor", "tensor_transpose": "tensor",
    "sequence": "sequence", "sp": "sequence",
    "pipe": "pipeline", "pipeline": "pipeline", "pp": "pipeline", "stage": "pipeline", "p": "pipeline",
    "expert": "expert", "ep": "expert",
    "context": "context", "cp": "context",
}  # fmt: skip
_NOT_AXES = {"expert_nodes"}


def axis_name(text: str) -> str | None:
    """Ours for an axis in print, which may say that it crosses the slow network (`_dcn`) or does not (`_ici`)."""
    return _NAMES.get(re.sub(r"(^(ici|dcn)_)|(_(ici|dcn|parallelism))+$", "", text.lower()))


def named_mesh(sizes: Mapping[str, Any], *, slow: bool | None = None) -> dict[str, int]:
    """Our axes of a mesh in print. slow: only those said to cross the slow network (True), or all others (False)."""
    mesh: dict[str, int] = {}
    for name, size in sizes.items():
        axis = axis_name(name)
        if axis is None or name in _NOT_AXES or not isinstance(size, int):
            continue
        if slow is None or slow == ("dcn" in name):
            mesh[axis] = mesh.get(axis, 1) * size
    return _without_sequence(mesh)


def _without_sequence(mesh: dict[str, int]) -> dict[str, int]:
    """Megatron's sequence parallelism shares the devices of `tensor`; alone, `sequence` is context parallelism."""
    sequence = mesh.pop("sequence", 1)
    if sequence > 1 and mesh.get("tensor", 1) != sequence:
        mesh["context"] = mesh.get("context", 1) * sequence
    return mesh


def parse_mesh(text: str) -> dict[str, int]:
    """`TP8xPP12xDP16`, `tp=8, pp=12`, `dp4tp8pp12`, `fsdp 64 x tensor 8`."""
    names = "|".join(sorted((name for name in _NAMES if len(name) > 1), key=len, reverse=True))
    found = re.findall(rf"({names})\s*=?\s*(\d+)", text.lower())
    return named_mesh({name: int(size) for name, size in found})


def given_mesh(given: Mapping[str, Any]) -> dict[str, int]:
    """The mesh of a case: its block, or single fields (`tensor`, `pipe`). Empty where it names none."""
    block = given.get("mesh", {})
    if isinstance(block, str):
        return parse_mesh(block)
    single = {
        name: given[name]
        for name in ("tensor", "pipe", "data", "expert", "context")
        if name in given
    }
    return named_mesh({**single, **block})
