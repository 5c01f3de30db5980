"""A calibrated tick model: times of a pipeline's passes measured on one device, and the step that tables make of them.

    python scripts/bench/pipeline_ticks.py CONFIG plan.pipeline=4 plan.microbatches=16 [key=value ...] [--json]

Measured here: one layer's forward pass, backward pass, its two halves as zero-bubble schedules run them, the head with
its gradients, the embedding's gradient, each for the rows that a device has of a microbatch; and, to see that the parts
make up the whole, a plain step of the same rows on this device. Predicted: a step in lockstep of every schedule, by
simulating its table with those times. Links are not measured: what goes from stage to stage counts nothing. No pipeline
is run, and nothing is said of devices that are not there. On a shared machine times are as good as it is quiet.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.models.build import model_builder
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, Params, blueprint
from jaxscale.models.staged import StagedModel, is_of_layers, staged
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.pipeline.schedules import SCHEDULES, make_table
from jaxscale.parallel.pipeline.simulate import Costs, Times, bubble, tick_time
from jaxscale.parallel.pipeline.split import SplitLayer, split_layer
from jaxscale.parallel.pipeline.stages import balanced, head_load
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.gradients import accumulate
from jaxscale.training.losses import loss_options
from jaxscale.training.precision import cast, compute_dtype
from jaxscale.training.sharded_loss import sharded_loss
from jaxscale.training.step import gradient_function

ROUNDS = 10


@dataclass(frozen=True)
class Measured:
    """Seconds of one microbatch: of a layer, of the head with its gradients, of the embedding's gradient.

    input_gradient, weight_gradient: of a layer, as ZB-H1 runs them instead of `backward`. plain: a step without a
    pipeline of as many microbatches, the optimizer left out.
    """

    forward: float
    backward: float
    input_gradient: float
    weight_gradient: float
    head: float
    embedding: float
    plain: float


@dataclass(frozen=True)
class Parts:
    """A model on one device. params: in the compute dtype, of one layer and of all that no layer has."""

    model: Blueprint
    staged: StagedModel
    placement: Placement
    layer: Params
    shared: Params
    rows: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, plan.pipeline among them")
    parser.add_argument("--json", action="store_true", help="print data")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    plan = pipeline_of(config)
    found = measure(config, plan)
    made = predictions(config, plan, found)
    if options.json:
        print(json.dumps({"measured": asdict(found), "predicted": made}, indent=1))
    else:
        _print(config, plan, found, made)


def pipeline_of(config: RunConfig) -> Plan:
    """Raises UserError for a run without a pipeline, or one whose stages are split over `tensor`."""
    plan = config.plan
    if not isinstance(plan, Plan) or plan.pipeline == 1 or plan.tensor > 1:
        raise UserError("name a plan with stages and without tensor, for example plan.pipeline=4")
    return plan


def measure(config: RunConfig, plan: Plan) -> Measured:
    """The best of a few rounds of each pass."""
    parts = _parts(config, plan)
    with use_forward_context(parts.placement.forward_context()):
        layer_times = _layer_seconds(parts)
        head, embedding = _end_seconds(parts, config)
    return Measured(*layer_times, head, embedding, _plain_seconds(parts, config, plan))


def predictions(config: RunConfig, plan: Plan, found: Measured) -> list[dict[str, Any]]:
    """A step of each schedule, by its table and these times. Interleaving has the plan's chunks, at least two."""
    description = blueprint(model_builder(config.model)).description
    layers = num_layers(config)
    made = []
    for schedule in SCHEDULES:
        chunks = max(2, plan.virtual_stages) if schedule == "interleaved" else 1
        depths = plan.pipeline * chunks
        if depths > layers:
            continue
        counts = balanced(layers, depths, head_load(description))
        given = tuple(plan.stage_layers)
        costs = costs_of(found, given if len(given) == depths else counts, schedule)
        table = make_table(
            schedule, stages=plan.pipeline, microbatches=plan.microbatches, chunks=chunks
        )
        step = tick_time(table, costs)
        made.append(
            {
                "schedule": schedule,
                "chunks": chunks,
                "seconds": step,
                "bubble": bubble(table, costs),
                "speedup": found.plain / step,
            }
        )
    return made


def num_layers(config: RunConfig) -> int:
    return len(staged(blueprint(model_builder(config.model))).kinds)


def costs_of(found: Measured, counts: Sequence[int], schedule: str) -> Costs:
    """Times of each piece of the model, in its order."""
    splits = schedule == "zb-h1"
    layer = (
        Times(found.forward, found.input_gradient, found.weight_gradient)
        if splits
        else Times(found.forward, found.backward)
    )
    depths = [
        Times(count * layer.forward, count * layer.backward, count * layer.weight)
        for count in counts
    ]
    depths[0] += Times(0, found.embedding)
    depths[-1] += Times(found.head, 0)
    return Costs(tuple(depths))


def _parts(config: RunConfig, plan: Plan) -> Parts:
    """Random parameters and tokens, of the sizes that a device has."""
    own = Plan(remat=plan.remat, precision=plan.precision, kernels=plan.kernels)
    model = blueprint(model_builder(config.model))
    placement = place(own, make_mesh(own, jax.devices()[:1]), model.description)
    parts, dtype = staged(model), compute_dtype(own.precision, placement.platform)
    rows = config.training.global_batch // (plan.microbatches * plan.batch_shards)
    if not rows:
        raise UserError(
            f"training.global_batch={config.training.global_batch} leaves a device no row"
        )
    keys = jax.random.split(jax.random.key(0), len(model.description) + 1)
    params = {
        path: 0.02 * jax.random.normal(key, spec.shape, jnp.float32)
        for key, (path, spec) in zip(keys, model.description.items(), strict=False)
    }
    table = next(spec for spec in model.description.values() if "vocab" in spec.axes)
    vocab = table.shape[table.axes.index("vocab")]
    tokens = jax.random.randint(keys[-1], (rows, config.data.sequence_length), 0, vocab)
    return Parts(
        model=model,
        staged=parts,
        placement=placement,
        layer=cast({p: x[0] for p, x in params.items() if is_of_layers(p)}, dtype),
        shared=cast({p: x for p, x in params.items() if not is_of_layers(p)}, dtype),
        rows={"tokens": tokens, "targets": tokens, "positions": None, "segment_ids": None},
    )


def _layer_seconds(parts: Parts) -> tuple[float, float, float, float]:
    """Mean over the kinds of layers, each as often as the model has it."""
    kinds = np.bincount(parts.staged.kinds, minlength=len(parts.staged.layers))
    each = np.array([_kind_seconds(parts, kind) for kind in range(len(kinds))])
    forward, backward, early, late = (kinds @ each / kinds.sum()).tolist()
    return forward, backward, early, late


def _kind_seconds(parts: Parts, kind: int) -> tuple[float, float, float, float]:
    inputs = jax.jit(parts.staged.prepare)(parts.rows)
    x = jax.jit(parts.staged.embed)(parts.shared, parts.rows)
    split = split_layer(parts.staged.layers[kind], parts.layer, inputs, x)
    total = _zeros(parts.layer)
    _, _, kept = jax.jit(split.forward)(parts.layer, inputs, x)
    _, _, pending = jax.jit(split.input_gradient)(parts.layer, inputs, kept, x)
    return (
        _seconds(split.forward, parts.layer, inputs, x),
        _seconds(_adding(split.backward), parts.layer, inputs, kept, x, total=total),
        _seconds(split.input_gradient, parts.layer, inputs, kept, x),
        _seconds(_adding(_weights(split)), parts.layer, inputs, kept, pending, total=total),
    )


def _zeros(parameters: Params) -> Params:
    return {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in parameters.items()}


def _adding(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass, (gradients, the rest) of its arguments, that adds its gradients up as the runtime does."""

    def added(total: Any, *arguments: Any) -> Any:
        gradients, rest = backward(*arguments)
        leaves, structure = jax.tree.flatten(total)
        new = jax.tree.leaves(gradients, is_leaf=lambda leaf: leaf is None)
        found = [
            a if b is None else a + b.astype(a.dtype) for a, b in zip(leaves, new, strict=True)
        ]
        return jax.tree.unflatten(structure, found), rest

    return added


def _weights(split: SplitLayer) -> Callable[..., Any]:
    return lambda *arguments: (split.weight_gradient(*arguments), ())


def _end_seconds(parts: Parts, config: RunConfig) -> tuple[float, float]:
    options = loss_options(config.training, parts.staged.logit_softcap)
    chunked = sharded_loss(parts.placement, options, config.training.loss_chunk)
    x = jax.jit(parts.staged.embed)(parts.shared, parts.rows)

    def loss(shared: Params, x: jax.Array) -> jax.Array:
        hidden, table = parts.staged.finish(shared, x)
        return chunked(hidden, table, parts.rows["targets"]).loss_sum

    def embedded(shared: Params, dx: jax.Array) -> Any:
        _, pull_back = jax.vjp(lambda shared: parts.staged.embed(shared, parts.rows), shared)
        return pull_back(dx)[0], ()

    total, head = _zeros(parts.shared), jax.grad(loss, argnums=(0, 1))
    return (
        _seconds(_adding(head), parts.shared, x, total=total),
        _seconds(_adding(embedded), parts.shared, x, total=total),
    )


def _plain_seconds(parts: Parts, config: RunConfig, plan: Plan) -> float:
    """The gradient of all microbatches one after another, without a pipeline."""
    layers = len(parts.staged.kinds)
    stacked = {path: jnp.stack([leaf] * layers) for path, leaf in parts.layer.items()}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), {**stacked, **parts.shared})
    one = gradient_function(parts.model, parts.placement, config.training)
    many = {
        name: None if rows is None else jnp.concatenate([rows] * plan.microbatches)
        for name, rows in parts.rows.items()
    }
    whole = accumulate(one, plan.microbatches) if plan.microbatches > 1 else one
    with jax.set_mesh(parts.placement.mesh):
        return _seconds(whole, params, many, jax.random.key(0))


def _seconds(function: Callable[..., Any], *arguments: Any, total: Any = None) -> float:
    """Of a call that puts its results where those of the call before were, as in a ring.

    total: of a function that takes and returns sums of gradients first.
    """

    def call(before: Any, *arguments: Any) -> Any:
        return function(*arguments) if total is None else function(before[0], *arguments)

    shapes = jax.eval_shape(function, *(arguments if total is None else (total, *arguments)))
    results = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    jitted = jax.jit(call, donate_argnums=0, keep_unused=True)
    results = jax.block_until_ready(jitted(results, *arguments))
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        results = jax.block_until_ready(jitted(results, *arguments))
        times.append(time.perf_counter() - started)
    return min(times)


def parts_seconds(found: Measured, num_layers: int, microbatches: int) -> float:
    """What a step takes by its parts, one after another: to be held against `plain`."""
    layers = num_layers * (found.forward + found.backward)
    return microbatches * (layers + found.head + found.embedding)


def _print(config: RunConfig, plan: Plan, found: Measured, made: list[dict[str, Any]]) -> None:
    device = jax.devices()[0]
    print(f"measured on one {device.device_kind or device.platform}, milliseconds a microbatch:")
    for name, seconds in asdict(found).items():
        print(f"  {name.replace('_', ' '):16s} {1e3 * seconds:9.3f}")
    parts = parts_seconds(found, num_layers(config), plan.microbatches)
    print(f"its parts, one after another, take {parts / found.plain:.2f} of the plain step")
    print(
        f"predicted of {plan.pipeline} such devices, {plan.microbatches} microbatches, links left out:"
    )
    for one in made:
        chunks = f" x{one['chunks']}" if one["chunks"] > 1 else ""
        print(
            f"  {one['schedule'] + chunks:16s} {1e3 * one['seconds']:9.3f} ms a step, bubble {one['bubble']:.3f}, "
            f"{one['speedup']:.2f} times as fast as one device"
        )


if __name__ == "__main__":
    main()
