"""Which layers each stage of a pipeline holds, and the order in which their parameters are stored for it.

A stacked parameter has its layers in the model's order wherever it is named from outside: in checkpoints, in
descriptions, in exports. In a pipelined run its `layers` dim is longer where stages are uneven, and in the order stage,
chunk, layer, so that splitting it over `pipeline` gives every stage its own layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config.plan import Plan
from jaxscale.models.description import Description, ParamSpec
from jaxscale.parallel.errors import PlacementError


@dataclass(frozen=True)
class StageLayout:
    """counts: layers of each chunk, in the model's order; chunk `c` of stage `s` is number `c * stages + s`."""

    stages: int
    chunks: int
    counts: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return sum(self.counts)

    @property
    def slots(self) -> int:
        """Places for layers in a chunk: those of the fullest one."""
        return max(self.counts)

    @property
    def num_stored(self) -> int:
        """Length of a stored `layers` dim."""
        return self.stages * self.chunks * self.slots

    @cached_property
    def layers(self) -> np.ndarray:
        """[stages, chunks, slots]: number of the layer in each place, -1 where there is none."""
        starts = np.cumsum((0, *self.counts))
        places = np.full((self.stages, self.chunks, self.slots), -1)
        for depth, count in enumerate(self.counts):
            chunk, stage = divmod(depth, self.stages)
            places[stage, chunk, :count] = starts[depth] + np.arange(count)
        return places

    @property
    def is_identity(self) -> bool:
        """Whether the stored order is the model's."""
        return bool(np.array_equal(self.layers.ravel(), np.arange(self.num_layers)))

    def stored(self, array: jax.Array, dim: int = 0) -> jax.Array:
        """From the model's order to the stored one along a `layers` dim; places without a layer are zero."""
        if self.is_identity:
            return array
        # A layer of -1 would count from the end.
        places = np.where(self.layers < 0, self.num_layers, self.layers).ravel()
        return jnp.take(array, places, axis=dim, mode="fill", fill_value=0)

    def logical(self, array: jax.Array, dim: int = 0) -> jax.Array:
        """From the stored order to the model's along a `layers` dim."""
        if self.is_identity:
            return array
        return jnp.take(array, np.argsort(self.layers.ravel())[-self.num_layers :], axis=dim)

    def stored_spec(self, spec: ParamSpec) -> ParamSpec:
        """What is stored of a parameter."""
        return _with_layers(spec, self.num_stored)

    def logical_spec(self, spec: ParamSpec) -> ParamSpec:
        """What a stored array is in the model's order."""
        return _with_layers(spec, self.num_layers)


def _with_layers(spec: ParamSpec, count: int) -> ParamSpec:
    sizes = (
        count if axis == "layers" else size
        for axis, size in zip(spec.axes, spec.shape, strict=True)
    )
    return replace(spec, shape=tuple(sizes))


def stage_layout(plan: Plan, description: Description) -> StageLayout | None:
    """The stages of a plan; None without a pipeline.

    Raises PlacementError for a model without stacked layers, or fewer layers than chunks, or `plan.stage_layers` that
    do not add up.
    """
    if plan.pipeline == 1:
        return None
    chunks, num_layers = virtual_stages(plan), count_layers(description)
    total = plan.pipeline * chunks
    if num_layers < total:
        raise PlacementError(_too_few(plan, num_layers, total))
    counts = tuple(plan.stage_layers) or balanced(num_layers, total, head_load(description))
    if len(counts) != total or sum(counts) != num_layers or min(counts) < 1:
        even = list(balanced(num_layers, total, head_load(description)))
        raise PlacementError(
            f"plan.stage_layers={list(counts)} has {len(counts)} chunks of {sum(counts)} layers in all, but "
            f"pipeline={plan.pipeline} x virtual_stages={chunks} makes {total} chunks of at least one layer, and the "
            f"model has {num_layers} layers; for example plan.stage_layers={even}"
        )
    return StageLayout(plan.pipeline, chunks, counts)


def virtual_stages(plan: Plan) -> int:
    """Chunks a stage. Raises PlacementError for several without an interleaved schedule."""
    if plan.virtual_stages > 1 and plan.schedule != "interleaved":
        raise PlacementError(
            f"plan.virtual_stages={plan.virtual_stages} needs plan.schedule=interleaved; schedule={plan.schedule} "
            "holds one chunk a stage"
        )
    return plan.virtual_stages


def count_layers(description: Description) -> int:
    """Layers of a model. Raises PlacementError where its parameters are not stacked over one number of them."""
    found = {
        spec.shape[0] for spec in description.values() if spec.axes and spec.axes[0] == "layers"
    }
    if len(found) != 1:
        raise PlacementError(
            "plan.pipeline needs a model whose layers are stacked along one leading `layers` dim; this one has "
            f"{sorted(found) or 'none'}; use plan.pipeline=1"
        )
    return found.pop()


def head_load(description: Description) -> float:
    """The product with the vocabulary, in layers: by the elements of their matrices, as their FLOPs are."""
    layers = [spec for spec in description.values() if spec.axes and spec.axes[0] == "layers"]
    layer = sum(spec.size // spec.shape[0] for spec in layers if len(spec.axes) > 2)
    tables = (spec.size for spec in description.values() if "vocab" in spec.axes)
    return max(tables, default=0) / max(1, layer)


def balanced(num_layers: int, chunks: int, last: float) -> tuple[int, ...]:
    """Layers of each chunk such that the slowest one is as fast as can be; `last` layers more run on the last one.

    The embedding's lookup costs no product and counts nothing.
    """
    extra = [0.0] * (chunks - 1) + [last]
    counts = [1] * chunks
    for _ in range(num_layers - chunks):
        least = min(range(chunks), key=lambda at: (counts[at] + 1 + extra[at], at))
        counts[least] += 1
    return tuple(counts)


def stored_description(description: Description, layout: StageLayout | None) -> Description:
    """The description of what a run stores: that of the model but for the length of `layers` dims."""
    if layout is None:
        return description
    stored: Mapping[str, ParamSpec] = {
        path: layout.stored_spec(spec) for path, spec in description.items()
    }
    return stored


def loads(layout: StageLayout, last: float) -> Sequence[float]:
    """Work of each chunk in layers, the head's `last` with the last one."""
    return [*layout.counts[:-1], layout.counts[-1] + last]


def _too_few(plan: Plan, num_layers: int, total: int) -> str:
    fits = [
        count for count in range(1, plan.pipeline + 1) if count * plan.virtual_stages <= num_layers
    ]
    chunks = f" x virtual_stages={plan.virtual_stages}" if plan.virtual_stages > 1 else ""
    return (
        f"pipeline={plan.pipeline}{chunks} makes {total} chunks, but the model has {num_layers} layers; every chunk "
        f"needs at least one: use pipeline={fits[-1] if fits else 1} or fewer"
    )
