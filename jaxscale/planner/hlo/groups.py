"""Which devices a collective joins, and which axes of the mesh that is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxscale.planner.hlo.text import Instruction

Ids = NDArray[np.int64]
OTHER = "other"
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\) )?\s*\{([^}]*)\}")
_MESH_ORDER = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


@dataclass(frozen=True)
class Group:
    """axes: mesh axes of more than one device that a collective runs over, outermost first; ("other",) where its groups
    are not whole axes. size: devices of a group; of a permutation those that the named axes have."""

    axes: tuple[str, ...]
    size: int


def group_of(collective: Instruction, mesh_shape: Mapping[str, int]) -> Group:
    """The group of a collective on a mesh whose devices, outermost axis first, are numbered in order."""
    if collective.opcode.startswith("collective-permute"):
        return _permuted(_pairs(collective), mesh_shape)
    groups = device_groups(collective, math.prod(mesh_shape.values()))
    return Group(_axes(groups, mesh_shape), groups.shape[1])


def device_groups(collective: Instruction, num_devices: int) -> Ids:
    """Device numbers, one row a group. Reads lists, `[4,2]<=[2,4]T(1,0)` and `mesh['a'=4,'b'=2] {'b'}`."""
    attributes = collective.attributes
    if found := _IOTA.search(attributes):
        return _iota(*found.groups()).reshape(_numbers(found[1]))
    if found := _MESH.search(attributes):
        return _over_mesh(*found.groups())
    listed = _LIST.search(attributes)
    rows = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    if not rows:
        return np.arange(num_devices, dtype=np.int64)[None]
    return np.asarray([_numbers(row) for row in rows], np.int64)


def _iota(_shape: str, dims: str, order: str | None) -> Ids:
    """Numbers from 0, shaped as `dims`, transposed, in one row."""
    numbers = np.arange(math.prod(_numbers(dims)), dtype=np.int64).reshape(_numbers(dims))
    return (numbers.transpose(_numbers(order)) if order else numbers).ravel()


def _over_mesh(axes: str, order: str | None, over: str) -> Ids:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    devices = _mesh_order(order, math.prod(sizes.values()))
    shape: list[int] = []
    chosen: list[int] = []
    wanted = {name: (before, size) for name, before, size in _AXIS.findall(over)}
    for name, size in sizes.items():
        before, part = (int(each or 0) for each in wanted.get(name, (0, 0)))
        parts = [before, part, size // (before * part)] if part else [size]
        if name in wanted:
            chosen.append(len(shape) + (1 if part else 0))
        shape.extend(parts)
    kept = [dim for dim in range(len(shape)) if dim not in chosen]
    count = math.prod(shape[dim] for dim in chosen)
    return devices.reshape(shape).transpose([*kept, *chosen]).reshape(-1, count)


def _mesh_order(order: str | None, num_devices: int) -> Ids:
    """The devices of a mesh in a row: in order, as `[2,4]T(1,0)`, or listed."""
    if not order:
        return np.arange(num_devices, dtype=np.int64)
    found = _MESH_ORDER.fullmatch(order)
    if found is None:
        return np.asarray(_numbers(order), np.int64)
    return _iota(found[1], found[2] or found[1], found[3])


def _axes(groups: Ids, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Axes along which the members of a group differ, if every group holds all devices along them."""
    places = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())))
    differs = (places != places[..., :1]).any(axis=(1, 2))
    axes = tuple(axis for axis, moves in zip(mesh_shape, differs, strict=True) if moves)
    whole = math.prod(mesh_shape[axis] for axis in axes) == groups.shape[1]
    return axes if whole else (OTHER,)


def _permuted(pairs: Ids, mesh_shape: Mapping[str, int]) -> Group:
    places = np.stack(np.unravel_index(pairs, tuple(mesh_shape.values())))
    moves = (places[..., 0] != places[..., 1]).any(axis=1)
    axes = tuple(axis for axis, moved in zip(mesh_shape, moves, strict=True) if moved)
    return Group(axes or (OTHER,), math.prod(mesh_shape[axis] for axis in axes))


def _pairs(collective: Instruction) -> Ids:
    found = _PAIRS.search(collective.attributes)
    return np.asarray(_numbers(found[1] if found else ""), np.int64).reshape(-1, 2)


def _numbers(text: str | None) -> Sequence[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]
