"""The layers of a chunk, forward and backward, one after another in a loop, whatever kinds they are of.

A stage's parameters are stacked over its layers; gradients are added in place, layer by layer, so that no second copy
of them exists. What forward passes leave for backward passes is stacked over the places of a chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.parallel.pipeline.split import Arrays, Layer, Shapes, SplitLayer, split_layer

# Kind of a place without a layer.
SKIP = -1


@dataclass(frozen=True)
class LayerKinds:
    """Layers of every kind that a model has, with one form of what they keep.

    residuals, pending: of a layer of any kind. uneven: whether some places hold no layer. early, late: whether a leaf
    of the parameters has a gradient, in some kind, that comes with that of the input, or after it.
    """

    split: tuple[SplitLayer, ...]
    residuals: Shapes
    pending: Shapes
    uneven: bool
    early: tuple[bool, ...] = ()
    late: tuple[bool, ...] = ()

    def forward(self, kind: jax.Array, parameters: Any, inputs: Any, x: jax.Array) -> Any:
        """(y, auxiliary loss, residuals) of a layer of that kind; x itself where there is none."""

        def run(split: SplitLayer) -> Callable[[], Any]:
            def branch() -> Any:
                y, auxiliary, kept = split.forward(parameters, inputs, x)
                return y, auxiliary, _packed(kept, split.residuals, self.residuals)

            return branch

        skipped = (x, jnp.zeros((), jnp.float32), _zeros(self.residuals))
        return self._switch(kind, [run(split) for split in self.split], skipped)

    def backward(
        self, kind: jax.Array, parameters: Any, inputs: Any, kept: Arrays, dy: jax.Array
    ) -> Any:
        """(gradient by parameters, gradient by x)."""

        def run(split: SplitLayer) -> Callable[[], Any]:
            residuals = _unpacked(kept, split.residuals, self.residuals)
            return lambda: split.backward(parameters, inputs, residuals, dy)

        skipped = jax.tree.map(jnp.zeros_like, parameters), dy
        return self._switch(kind, [run(split) for split in self.split], skipped)

    def input_gradient(
        self, kind: jax.Array, parameters: Any, inputs: Any, kept: Arrays, dy: jax.Array
    ) -> Any:
        """(gradients by the leaves of the parameters, None where they are put off; gradient by x; pending)."""

        def run(split: SplitLayer) -> Callable[[], Any]:
            def branch() -> Any:
                residuals = _unpacked(kept, split.residuals, self.residuals)
                cheap, dx, pending = split.input_gradient(parameters, inputs, residuals, dy)
                packed = _packed(pending, split.pending, self.pending)
                return _chosen(cheap, parameters, self.early), dx, packed

            return branch

        nothing: list[Any] = [None] * len(self.early)
        skipped = _chosen(nothing, parameters, self.early), dy, _zeros(self.pending)
        return self._switch(kind, [run(split) for split in self.split], skipped)

    def weight_gradient(
        self, kind: jax.Array, parameters: Any, inputs: Any, kept: Arrays, pending: Arrays
    ) -> Any:
        """The gradients that were put off, by the leaves of the parameters, None for the others."""

        def run(split: SplitLayer) -> Callable[[], Any]:
            def branch() -> Any:
                residuals = _unpacked(kept, split.residuals, self.residuals)
                put_off = _unpacked(pending, split.pending, self.pending)
                late = split.weight_gradient(parameters, inputs, residuals, put_off)
                return _chosen(late, parameters, self.late)

            return branch

        skipped = _chosen([None] * len(self.late), parameters, self.late)
        return self._switch(kind, [run(split) for split in self.split], skipped)

    def _switch(self, kind: jax.Array, branches: list[Callable[[], Any]], skipped: Any) -> Any:
        if self.uneven:
            branches = [*branches, lambda: skipped]
        if len(branches) == 1:
            return branches[0]()
        return jax.lax.switch(jnp.where(kind == SKIP, len(branches) - 1, kind), branches)


def layer_kinds(
    layers: Sequence[Layer], parameters: Any, inputs: Any, x: Any, *, uneven: bool
) -> LayerKinds:
    """Every kind of layer divided, for the shapes of one layer's parameters, its inputs and x."""
    split = tuple(split_layer(layer, parameters, inputs, x) for layer in layers)
    return LayerKinds(
        split,
        residuals=_union([one.residuals for one in split]),
        pending=_union([one.pending for one in split]),
        uneven=uneven,
        early=tuple(not all(kinds) for kinds in zip(*(one.is_late for one in split), strict=True)),
        late=tuple(any(kinds) for kinds in zip(*(one.is_late for one in split), strict=True)),
    )


def plain_kinds(layers: Sequence[Layer], *, uneven: bool) -> LayerKinds:
    """For forward passes alone: nothing is kept, and nothing but `forward` can be asked."""

    def never(*_: Any) -> Any:
        raise AssertionError("nothing was kept for a backward pass")

    def forward(layer: Layer) -> Callable[..., Any]:
        return lambda *arguments: (*layer(*arguments), ())

    split = tuple(SplitLayer((), (), (), forward(layer), never, never, never) for layer in layers)
    return LayerKinds(split, (), (), uneven)


def _chosen(some: Sequence[Any], parameters: Any, wanted: Sequence[bool]) -> list[Any]:
    """The wanted gradients, zero where this kind of layer has none; None for those not wanted."""
    leaves = jax.tree.leaves(parameters)
    return [
        (jnp.zeros_like(leaf) if gradient is None else gradient) if is_wanted else None
        for gradient, leaf, is_wanted in zip(some, leaves, wanted, strict=True)
    ]


def _union(kinds: Sequence[Shapes]) -> Shapes:
    """Shapes among which each kind's can be found: as many of each as the kind with most of it has."""
    union: list[jax.ShapeDtypeStruct] = []
    for shapes in kinds:
        left = list(union)
        for shape in shapes:
            if shape in left:
                left.remove(shape)
            else:
                union.append(shape)
    return tuple(union)


def _places(shapes: Shapes, union: Shapes) -> list[int]:
    """Where each shape's array lies in the union."""
    free = list(range(len(union)))
    places = []
    for shape in shapes:
        place = next(index for index in free if union[index] == shape)
        free.remove(place)
        places.append(place)
    return places


def _packed(arrays: Arrays, shapes: Shapes, union: Shapes) -> Arrays:
    packed = list(_zeros(union))
    for place, array in zip(_places(shapes, union), arrays, strict=True):
        packed[place] = array
    return tuple(packed)


def _unpacked(packed: Arrays, shapes: Shapes, union: Shapes) -> Arrays:
    return tuple(packed[place] for place in _places(shapes, union))


def _zeros(shapes: Shapes) -> Arrays:
    return tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)
