"""The gradient and the loss of a batch through a pipeline: a model's parts, a schedule's program, one map over stages.

The map is manual over `pipeline`, `data` and `fsdp`; `tensor` stays with the compiler, also for sequence parallelism.
Parameters are gathered over `fsdp` once, before the loop, and gradients reduced over `data` and `fsdp` once, behind it:
with a pipeline `fsdp` splits what is stored, not what a step computes with (ZeRO-2, not ZeRO-3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxscale.config.run_sections import TrainingSection
from jaxscale.kernels.linear_cross_entropy.api import LossSums
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, Params
from jaxscale.models.staged import STREAM_AXES, StagedModel, is_of_layers, staged
from jaxscale.parallel.pipeline.layers import SKIP
from jaxscale.parallel.pipeline.passes import Model
from jaxscale.parallel.pipeline.program import Program, make_program
from jaxscale.parallel.pipeline.runtime import AXIS, Results, run_schedule
from jaxscale.parallel.pipeline.schedules import forward_table, make_table
from jaxscale.parallel.placement import Placement
from jaxscale.training.gradients import GradientFunction, microbatches, num_passes
from jaxscale.training.losses import Batch, loss_options
from jaxscale.training.precision import cast, compute_dtype
from jaxscale.training.sharded_loss import sharded_loss

_BATCH_AXES = ("data", "fsdp")
_MANUAL = frozenset({AXIS, *_BATCH_AXES})


def pipelined_gradient(
    model: Blueprint, placement: Placement, training: TrainingSection, *, idle: float = 0.0
) -> GradientFunction:
    """Gradient of the summed loss of a whole batch by the stored parameters, in fp32, and the loss's sums.

    idle: what passes that do not run give (for tests). Raises UserError for a module whose parts are not known.
    """
    pipeline = _pipeline(model, placement, training)
    plan = placement.plan
    table = make_table(
        plan.schedule,
        stages=plan.pipeline,
        microbatches=plan.microbatches,
        chunks=plan.virtual_stages,
    )
    program = make_program(table)

    def gradient(params: Params, batch: Batch, _key: jax.Array) -> tuple[Params, LossSums]:
        def on_stage(params: Params, batch: Batch) -> tuple[Params, LossSums]:
            results = pipeline.run(program, params, batch, plan.microbatches, idle)
            gradients = {**results.layers, **results.shared}
            partial = {path: value[None] for path, value in gradients.items()}
            return partial, pipeline.total(results)

        out_specs = (pipeline.partial_specs(params), PartitionSpec())
        partial, sums = pipeline.mapped(on_stage, params, batch, out_specs)
        return pipeline.reduced(partial), sums

    return gradient


def pipelined_loss(
    model: Blueprint, placement: Placement, training: TrainingSection
) -> Callable[[Params, Batch], LossSums]:
    """The loss's sums of a batch, by a schedule of forward passes alone."""
    pipeline = _pipeline(model, placement, training)
    plan = placement.plan

    def loss(params: Params, batch: Batch) -> LossSums:
        passes = num_passes(batch["tokens"].shape[0] // plan.batch_shards, plan.microbatches)
        table = forward_table(stages=plan.pipeline, microbatches=passes, chunks=plan.virtual_stages)
        program = make_program(table)

        def on_stage(params: Params, batch: Batch) -> LossSums:
            return pipeline.total(pipeline.run(program, params, batch, passes, 0.0))

        sums: LossSums = pipeline.mapped(on_stage, params, batch, PartitionSpec())
        return sums

    return loss


@dataclass(frozen=True)
class _Pipeline:
    """One model on the stages of one placement. specs: the partition of every stored parameter."""

    placement: Placement
    dtype: np.dtype[Any]
    parts: Model
    places: np.ndarray
    specs: Mapping[str, PartitionSpec]

    def mapped(self, function: Callable[..., Any], params: Params, batch: Batch, out: Any) -> Any:
        """`function` on each stage's layers, all other parameters, and the rows of each of the batch's shards."""
        layers = {
            path: PartitionSpec(AXIS) if is_of_layers(path) else PartitionSpec() for path in params
        }
        return jax.shard_map(
            function,
            mesh=self.placement.mesh,
            in_specs=(layers, PartitionSpec(_BATCH_AXES)),
            out_specs=out,
            axis_names=_MANUAL,
            check_vma=False,
        )(cast(params, self.dtype), batch)

    def run(
        self, program: Program, params: Params, batch: Batch, passes: int, idle: float
    ) -> Results:
        layers = {path: value for path, value in params.items() if is_of_layers(path)}
        shared = {path: value for path, value in params.items() if not is_of_layers(path)}
        inside = self.placement.inside_map(_MANUAL)
        with use_forward_context(inside.forward_context()):
            return run_schedule(
                program,
                self.parts,
                self.places,
                layers,
                shared,
                microbatches(batch, passes),
                idle=idle,
            )

    def total(self, results: Results) -> LossSums:
        """Over stages and rows, with auxiliary losses in what is minimized."""
        sums: LossSums = jax.lax.psum(results.sums, (AXIS, *_BATCH_AXES))
        auxiliary = jax.lax.psum(results.auxiliary, (AXIS, *_BATCH_AXES))
        return LossSums(sums.loss_sum + auxiliary, sums.nll_sum, sums.weight)

    def partial_specs(self, params: Params) -> dict[str, PartitionSpec]:
        """Of gradients as the stages leave them: with a dim in front for those whose sum they are part of."""
        return {path: PartitionSpec(_over(path), *_owned(path)) for path in params}

    def reduced(self, partial: Params) -> Params:
        """Over rows, and over stages where they share a parameter: once, each device left with what it stores.

        Manual over all axes: the compiler would gather over `tensor` what is scattered over `fsdp`.
        """
        entries = {path: self._entries(path) for path in partial}
        before = {
            path: PartitionSpec(
                _over(path), *(_without(axes, _over(path)) for axes in entries[path])
            )
            for path in partial
        }
        after = {path: PartitionSpec(*map(_ordered, entries[path])) for path in partial}

        def reduce(partial: Params) -> Params:
            return {
                path: _reduced(path, value[0], entries[path]) for path, value in partial.items()
            }

        mesh = self.placement.mesh
        return jax.shard_map(
            reduce, mesh=mesh, in_specs=(before,), out_specs=after, check_vma=False
        )(partial)

    def _entries(self, path: str) -> list[tuple[str, ...]]:
        """The mesh axes that split each dim of a stored parameter."""
        listed = ((e,) if isinstance(e, str) else e or () for e in self.specs[path])
        return [
            tuple(axis for axis in axes if self.placement.mesh.shape[axis] > 1) for axes in listed
        ]


def _over(path: str) -> tuple[str, ...]:
    """The mesh axes whose devices each have a part of a parameter's gradient."""
    return _BATCH_AXES if is_of_layers(path) else (AXIS, *_BATCH_AXES)


def _owned(path: str) -> tuple[str, ...]:
    return (AXIS,) if is_of_layers(path) else ()


def _without(axes: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...] | None:
    return tuple(axis for axis in axes if axis not in others) or None


def _ordered(axes: tuple[str, ...]) -> tuple[str, ...] | None:
    """As scattering leaves a dim: split over the axes of the batch within its other parts."""
    return tuple(sorted(axes, key=lambda axis: axis in _MANUAL)) or None


def _reduced(path: str, value: jax.Array, entries: list[tuple[str, ...]]) -> jax.Array:
    left = _over(path)
    for dim, axes in enumerate(entries):
        for axis in axes:
            if axis in left:
                value = jax.lax.psum_scatter(value, axis, scatter_dimension=dim, tiled=True)
                left = tuple(other for other in left if other != axis)
    total: jax.Array = jax.lax.psum(value, left)
    return total


def _pipeline(model: Blueprint, placement: Placement, training: TrainingSection) -> _Pipeline:
    layout = placement.stages
    assert layout is not None, "a placement without stages has no pipeline"
    parts = staged(model)
    kinds = np.array([*parts.kinds, SKIP])
    shardings = placement.shardings(placement.stored(model.description))
    return _Pipeline(
        placement,
        dtype=compute_dtype(placement.plan.precision, placement.platform),
        parts=_runtime_model(parts, placement.inside_map(_MANUAL), training),
        places=kinds[layout.layers],
        specs={path: sharding.spec for path, sharding in shardings.items()},
    )


def _runtime_model(parts: StagedModel, inside: Placement, training: TrainingSection) -> Model:
    chunked = sharded_loss(inside, loss_options(training, parts.logit_softcap), training.loss_chunk)

    def loss(shared: Params, x: jax.Array, rows: Batch) -> tuple[jax.Array, LossSums]:
        hidden, table = parts.finish(shared, x)
        sums = chunked(hidden, table, rows["targets"])
        return sums.loss_sum, sums

    return Model(
        prepare=parts.prepare,
        embed=parts.embed,
        layers=parts.layers,
        loss=loss,
        stream=lambda x: inside.constrain(x, STREAM_AXES),
    )
