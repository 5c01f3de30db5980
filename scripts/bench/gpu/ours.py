"""jaxscale's own training step, from config sections, on synthetic text."""

import gzip
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from variants import (
    BETAS,
    CLIP_NORM,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Measured,
    Size,
    Timing,
    Variant,
    measure,
    rate,
    text,
)

from jaxscale.config.plan import Plan
from jaxscale.config.run_sections import TrainingSection
from jaxscale.kernels.attention.api import choose_kernel
from jaxscale.kernels.attention.call import AttentionCall
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.target import target_of
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, blueprint
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.losses import Batch
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.precision import compute_dtype
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import TrainState, init_state, state_shardings, state_specs
from jaxscale.training.step import StepFunction, compile_step, make_train_step

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_BATCHES = 4
_TRACED_STEPS = 3
# A GPU's streams; where there is none, XLA's threads on CPU.
_TRACED_LINES = ("Stream #", "tf_XLA")


def sections(variant: Variant) -> tuple[TrainingSection, Plan]:
    """The parts of a configuration that a variant decides."""
    beta1, beta2 = BETAS
    optimizer = {
        "learning_rate": LEARNING_RATE,
        "beta1": beta1,
        "beta2": beta2,
        "epsilon": EPSILON,
        "weight_decay": WEIGHT_DECAY,
    }
    training = TrainingSection.model_validate(
        {
            "steps": 1000,
            "global_batch": variant.rows,
            "optimizer": optimizer,
            "schedule": {"name": "constant"},
            "clip_norm": CLIP_NORM,
            "loss_chunk": variant.chunk,
        }
    )
    plan = Plan.model_validate(
        {
            "remat": variant.remat,
            "layer_unroll": variant.unroll,
            "precision": variant.precision,
            "kernels": {} if variant.attention == "auto" else {"attention": variant.attention},
        }
    )
    return training, plan


@dataclass(frozen=True)
class Parts:
    """A step and what it is for; nothing of it is an array yet."""

    model: Blueprint
    placement: Placement
    optimizer: optax.GradientTransformation
    specs: TrainState
    step: StepFunction


def prepare(size: Size, variant: Variant, device: jax.Device) -> Parts:
    """The step of a variant, put together as `jaxscale train` does."""
    training, plan = sections(variant)
    model = blueprint(model_builder(size.model()))
    placement = place(plan, make_mesh(plan, [device]), model.description)
    schedule = learning_rate(training.schedule, peak=LEARNING_RATE, steps=training.steps)
    optimizer = make_optimizer(training.optimizer, schedule, model.description)
    step = make_train_step(model, placement, optimizer, schedule, training)
    specs = state_specs(model.description, optimizer, averaged=False)
    return Parts(model, placement, optimizer, specs, step)


class Trainer:
    """A step, compiled, and the state that it changes."""

    def __init__(self, size: Size, variant: Variant) -> None:
        self.size, self.variant = size, variant
        parts = prepare(size, variant, jax.devices()[0])
        self.placement = parts.placement
        shardings = state_shardings(parts.specs, parts.placement)
        self.step = compile_step(parts.step, shardings, parts.placement)
        self.state = init_state(
            parts.model, parts.optimizer, parts.placement, seed=0, averaged=False
        )

    def batch(self, seed: int) -> Batch:
        """On the device. Whole rows leave segments and positions to the model, packed ones have two documents."""
        rows, length = self.variant.rows, self.size.sequence
        arrays = text(self.size, rows, seed)
        if self.variant.documents == "packed":
            place_in_row = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
            second = place_in_row >= length // 2
            arrays["segment_ids"] = 1 + second.astype(np.int32)
            arrays["positions"] = place_in_row - np.where(second, length // 2, 0).astype(np.int32)
        placed = place_batch(arrays, batch_sharding(self.placement, rows, length), rows)
        absent: dict[str, Any] = {"segment_ids": None, "positions": None}
        return {**absent, **placed}

    def advance(self, batch: Batch) -> jax.Array:
        """One step; the loss, still on the device."""
        self.state, metrics = self.step(self.state, batch)
        return metrics["loss"]

    def attention(self) -> str:
        """The attention that runs and why no other does."""
        arch = self.size.architecture()
        dtype = compute_dtype(self.placement.plan.precision, self.placement.platform)
        rows, length, dim = self.variant.rows, self.size.sequence, arch.head_dim
        call = AttentionCall(
            dtype.name,
            rows,
            length,
            length,
            arch.num_heads,
            arch.num_kv_heads,
            dim,
            Form(scale=arch.attention_scale),
            "shared" if self.variant.documents == "packed" else "none",
        )
        target = target_of(self.placement.mesh)
        chosen, _ = choose_kernel(call, target, self.variant.attention)
        return f"attention {chosen}"


def run(
    size: Size, variant: Variant, timing: Timing, started: float, trace: Path | None
) -> Measured:
    """Train and measure; with `trace`, also write what three more steps did on the device to that folder."""
    trainer = Trainer(size, variant)
    batches = [trainer.batch(seed) for seed in range(_BATCHES)]
    step = partial(_advance, trainer, batches)
    result = measure(step, float, timing, started)
    device = jax.devices()[0]
    rate(result, size, variant.rows, device.device_kind)
    stats = device.memory_stats()
    if stats:
        result.peak_gib = stats["peak_bytes_in_use"] / 2**30
    result.note = trainer.attention()
    result.versions = {name: version(name) for name in _PACKAGES}
    if trace is not None:
        write_trace(step, trace)
    return result


def _advance(trainer: Trainer, batches: list[Batch], index: int) -> jax.Array:
    return trainer.advance(batches[index % len(batches)])


def write_trace(step: Callable[[int], jax.Array], folder: Path) -> None:
    """`trace.xplane.pb.gz` for XProf, and `trace_ops.md`: the device's operations by the time they took."""
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            jax.block_until_ready([step(index) for index in range(_TRACED_STEPS)])
        (found,) = Path(scratch).rglob("*.xplane.pb")
        content = found.read_bytes()
    (folder / "trace.xplane.pb.gz").write_bytes(gzip.compress(content))
    (folder / "trace_ops.md").write_text(_operations(content))


def _operations(content: bytes) -> str:
    seconds: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_serialized_xspace(content).planes:
        for line in plane.lines:
            if line.name.startswith(_TRACED_LINES):
                for event in line.events:
                    seconds[event.name] += event.duration_ns / 1e9
    total = sum(seconds.values()) or 1.0
    rows = [
        f"| {name[:100]} | {1e3 * spent / _TRACED_STEPS:.2f} | {spent / total:.1%} |"
        for name, spent in seconds.most_common(60)
    ]
    return "\n".join(["| operation | ms a step | share |", "|---|---|---|", *rows]) + "\n"


def losses(size: Size, variant: Variant, steps: int) -> list[float]:
    """The loss of each of `steps` steps, fp32 products in full precision where the variant is fp32."""
    if variant.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    trainer = Trainer(size, variant)
    found = [trainer.advance(trainer.batch(seed)) for seed in range(steps)]
    return [float(value) for value in jnp.stack(found)]
