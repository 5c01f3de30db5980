"""Name maps: which tensors of another format hold which parameters of ours. One map serves import and export.

A family's map is data, a list of `Entry`. Bound to a model's description it becomes `NameMap`: every tensor with its
shape, and for every parameter of ours the tensors that it is made of. Both directions read boxes through a function
that the caller gives, so nothing larger than what was asked for is ever held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxscale.checkpoint.stored import Box
from jaxscale.errors import UserError
from jaxscale.interop.layout import Layout, box_shape, copy_turned, make_layout, within
from jaxscale.models.description import Description, ParamSpec

LAYERS = "layers"
# What is read from a disk at once, and turned while it is in the processor's cache.
STRIP_ELEMENTS = 2**18
ReadNamed = Callable[[str, Box], np.ndarray[Any, Any]]
"""Name of a tensor, or path of a parameter, and the box of it."""


@dataclass(frozen=True)
class Piece:
    """A parameter of ours inside a tensor of theirs.

    path: `layers/attention/query`.
    dims: their dims in the words of the parameter's axes, without `layers`: `(heads head_dim) embed`. None: as ours.
    """

    path: str
    dims: str | None = None


@dataclass(frozen=True)
class Entry:
    """A tensor of theirs, or one a layer (`model.layers.{layer}.self_attn.q_proj.weight`).

    pieces: what of ours it holds, joined along its dim number `dim`.
    """

    name: str
    pieces: tuple[Piece, ...]
    dim: int = 0


def one(name: str, path: str, dims: str | None = None) -> Entry:
    """A tensor that holds one parameter."""
    return Entry(name, (Piece(path, dims),))


@dataclass(frozen=True)
class Part:
    """A piece bound to a model. layer: of our stack, None where there is none. start: where along the joined dim."""

    path: str
    layer: int | None
    layout: Layout
    start: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of theirs, bound to a model."""

    name: str
    shape: tuple[int, ...]
    dim: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class NameMap:
    """All tensors of a model in their order, and what each parameter of ours is made of."""

    description: Description
    tensors: tuple[Tensor, ...]

    @cached_property
    def sources(self) -> Mapping[str, Sequence[tuple[Tensor, Part]]]:
        """By path of ours, the tensors that hold it, in the order of layers."""
        found: dict[str, list[tuple[Tensor, Part]]] = {path: [] for path in self.description}
        for tensor in self.tensors:
            for part in tensor.parts:
                found[part.path].append((tensor, part))
        return found


def bind(entries: Sequence[Entry], description: Description) -> NameMap:
    """The map of a model: entries whose parameters it lacks (biases, an untied head) are left out.

    Layer by layer, in the order of the entries. Raises UserError for a parameter that no entry has.
    """
    present = [entry for entry in entries if all(one.path in description for one in entry.pieces)]
    tensors: list[Tensor] = []
    stacked = [entry for entry in present if _is_stacked(entry, description)]
    for entry in present:
        if entry not in stacked:
            tensors.append(_tensor(entry, description, None))
        elif entry is stacked[0]:
            depth = description[entry.pieces[0].path].shape[0]
            tensors += [_tensor(e, description, layer) for layer in range(depth) for e in stacked]
    made = NameMap(description, tuple(tensors))
    for path, spec in description.items():
        wanted = spec.shape[0] if spec.axes[:1] == (LAYERS,) else 1
        if not made.sources[path]:
            raise UserError(f"the model has {path}, which no tensor of this family holds")
        assert len(made.sources[path]) == wanted, f"{path} is in {len(made.sources[path])} tensors"
    return made


def read_theirs(tensor: Tensor, box: Box, read: ReadNamed) -> np.ndarray[Any, Any]:
    """A box of a tensor of theirs. `read` gives boxes of our parameters by path, the `layers` dim included."""
    blocks = []
    for part in tensor.parts:
        width = part.layout.their_shape[tensor.dim] if tensor.shape else 0
        inside = _overlap(box, tensor.dim, part.start, width)
        if inside is not None:
            blocks.append(part.layout.read_theirs(inside, _reader_of(part, read)))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=tensor.dim)


def read_ours(
    names: NameMap,
    path: str,
    box: Box,
    read: ReadNamed,
    dtype: np.dtype[Any],
    strip_elements: int | None = None,
) -> np.ndarray[Any, Any]:
    """A box of a parameter of ours in `dtype`. `read` gives boxes of their tensors by name.

    strip_elements: what is read at once; None: all of a tensor that is in the box.
    """
    out = np.empty(box_shape(box), dtype)
    for tensor, part in names.sources[path]:
        if part.layer is None:
            _fill(out, tensor, part, box, read, strip_elements)
        elif box[0].start <= part.layer < box[0].stop:
            target = out[part.layer - box[0].start]
            _fill(target, tensor, part, box[1:], read, strip_elements)
    return out


def _fill(
    out: np.ndarray[Any, Any],
    tensor: Tensor,
    part: Part,
    box: Box,
    read: ReadNamed,
    elements: int | None,
) -> None:
    def read_part(inside: Box) -> np.ndarray[Any, Any]:
        return read(tensor.name, _moved(inside, tensor.dim, part.start))

    for strip in part.layout.strips_of_ours(box, elements or out.size):
        copy_turned(out[within(strip, box) or ...], part.layout.read_ours(strip, read_part))


def _reader_of(part: Part, read: ReadNamed) -> Callable[[Box], np.ndarray[Any, Any]]:
    if part.layer is None:
        return lambda box: read(part.path, box)
    layer = slice(part.layer, part.layer + 1)
    return lambda box: read(part.path, (layer, *box))[0]


def _tensor(entry: Entry, description: Description, layer: int | None) -> Tensor:
    parts, start = [], 0
    for piece in entry.pieces:
        layout = _layout(piece, description[piece.path])
        parts.append(Part(piece.path, layer, layout, start))
        start += layout.their_shape[entry.dim]
    shape = list(parts[0].layout.their_shape)
    shape[entry.dim] = start
    return Tensor(entry.name.format(layer=layer), tuple(shape), entry.dim, tuple(parts))


def _layout(piece: Piece, spec: ParamSpec) -> Layout:
    skip = 1 if spec.axes[:1] == (LAYERS,) else 0
    dims = tuple(axis or f"dim{index}" for index, axis in enumerate(spec.axes))
    return make_layout(dims[skip:], spec.shape[skip:], piece.dims)


def _is_stacked(entry: Entry, description: Description) -> bool:
    return description[entry.pieces[0].path].axes[:1] == (LAYERS,)


def _overlap(box: Box, dim: int, start: int, width: int) -> Box | None:
    """What of a box lies in [start, start + width) of a dim, counted from there."""
    low = max(box[dim].start - start, 0)
    high = min(box[dim].stop - start, width)
    return (*box[:dim], slice(low, high), *box[dim + 1 :]) if low < high else None


def _moved(box: Box, dim: int, by: int) -> Box:
    return (*box[:dim], slice(box[dim].start + by, box[dim].stop + by), *box[dim + 1 :])
