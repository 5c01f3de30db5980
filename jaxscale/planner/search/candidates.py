"""Every mesh of a number of devices, and why some of them cannot carry the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.vocabulary.layout import AXES

Sizes = NDArray[np.int64]
# Of a sequence on one device: with fewer, blocks of fused attention are not filled and causal work is not balanced.
# Nobody has published a shorter one.
LEAST_CONTEXT = 2048


@dataclass(frozen=True)
class Rule:
    """A number that has to divide over (or be at least) the product of some axes.

    key: what it is called in `rejected`. value: that number. axes: whose product is asked. divides: False means `at
    least`.
    """

    key: str
    words: str
    value: int
    axes: tuple[str, ...]
    divides: bool = True

    def holds(self, meshes: Sizes) -> NDArray[np.bool_]:
        product = np.prod([meshes[:, AXES.index(axis)] for axis in self.axes], axis=0)
        kept: NDArray[np.bool_] = (
            self.value % product == 0 if self.divides else self.value >= product
        )
        return kept


def all_meshes(num_devices: int, allowed: Mapping[str, Sequence[int]]) -> Sizes:
    """[meshes, axes]: every way to write the number as a product of axis sizes out of those allowed, in order."""
    rows, left = np.ones((1, 0), np.int64), np.array([num_devices])
    for axis in AXES[:-1]:
        sizes = np.array(sorted(allowed[axis]), np.int64)
        row, column = np.nonzero(left[:, None] % sizes == 0)
        rows = np.hstack([rows[row], sizes[column, None]])
        left = left[row] // sizes[column]
    last = np.isin(left, np.array(list(allowed[AXES[-1]])))
    return np.hstack([rows[last], left[last, None]])


def rules_of(workload: Workload, groups_embed: int | None = None) -> tuple[Rule, ...]:
    """What a mesh must satisfy for a model: the first that fails is the reason it is rejected for."""
    shape, length = workload.shape, workload.sequence
    batch_axes = ("data", "fsdp", "expert")
    embed = groups_embed or shape.embed
    return (
        *_tensor_rules(shape),
        *_expert_rules(shape),
        Rule("layers", "layers", shape.layers, ("pipeline",), divides=False),
        Rule(
            "context",
            f"sequence of {length:,} in shards of {LEAST_CONTEXT:,} tokens:",
            max(1, length // LEAST_CONTEXT),
            ("context",),
            divides=False,
        ),
        Rule("sequence", "sequence length", length, ("context", "tensor")),
        Rule("embed", "embed", embed, ("fsdp", "expert", "context")),
        Rule("batch", "global batch", workload.global_batch, batch_axes),
    )


def _tensor_rules(shape: ModelShape) -> tuple[Rule, ...]:
    mlp = shape.mlp if shape.experts is None else shape.experts.mlp
    rules = [
        Rule("heads", "heads", shape.heads, ("tensor",)),
        Rule("mlp", "mlp", mlp, ("tensor",)),
        Rule("vocab", "vocabulary", shape.vocab, ("tensor",)),
    ]
    if shape.latent is None:
        rules.insert(0, Rule("kv_heads", "kv_heads", shape.kv_heads, ("tensor",)))
    return tuple(rules)


def _expert_rules(shape: ModelShape) -> tuple[Rule, ...]:
    if shape.experts is None:
        return ()
    return (Rule("experts", "experts", shape.experts.count, ("expert",)),)


def divisors(number: int) -> tuple[int, ...]:
    """Ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return tuple(sorted({*small, *(number // n for n in small)}))
