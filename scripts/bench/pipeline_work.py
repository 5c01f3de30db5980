"""Matrix products that a pipelined step executes over those that are useful, by schedule and remat policy.

    python scripts/bench/pipeline_work.py [--config configs/models/llama3-8b.yaml] [--sequence 4096]

Counted in the traces of the functions that the stages run; no array is made. Useful: forward and backward of every
layer and of the loss, nothing computed again. Every pass runs as often as the schedule's table says, which is once a
microbatch and layer, and the loss once a microbatch: tests/parallel/test_pipeline_runtime.py counts it in the program.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.config.loading import load_model
from jaxscale.config.plan import Remat
from jaxscale.models.build import model_builder
from jaxscale.models.context import ForwardContext, use_forward_context
from jaxscale.models.description import Blueprint, blueprint
from jaxscale.models.staged import is_of_layers, staged
from jaxscale.models.traced_flops import traced_flops
from jaxscale.parallel.pipeline.split import SplitLayer, split_layer
from jaxscale.parallel.remat import wrap_block

ROOT = Path(__file__).resolve().parents[2]
POLICIES: tuple[Remat, ...] = ("none", "dots", "minimal", "full")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs/models/llama3-8b.yaml")
    parser.add_argument("--sequence", type=int, default=4096)
    options = parser.parse_args()
    model = blueprint(model_builder(load_model(options.config)[0]))
    useful = _layer_work(model, options.sequence, "none")
    head = _head_products(model, options.sequence)
    layers = next(spec.shape[0] for path, spec in model.description.items() if is_of_layers(path))
    for remat in POLICIES:
        work = _layer_work(model, options.sequence, remat)
        whole = work["forward"] + work["backward"]
        parts = work["forward"] + work["input"] + work["weight"]
        base = layers * (useful["forward"] + useful["backward"]) + head
        print(
            f"{remat:8} executed / useful: F + B {(layers * whole + head) / base:.4f}, "
            f"F + B + W {(layers * parts + head) / base:.4f}; of a layer's F: "
            f"B {work['backward'] / work['forward']:.3f} = input {work['input'] / work['forward']:.3f} + "
            f"weight {work['weight'] / work['forward']:.3f}"
        )


def _layer_work(model: Blueprint, sequence: int, remat: Remat) -> dict[str, float]:
    """FLOPs of the passes of one layer over one row."""
    with use_forward_context(ForwardContext(wrap_block=wrap_block(remat))):
        split, arguments = _split(model, sequence)
    params, inputs, x = arguments
    return {
        "forward": traced_flops(split.forward, params, inputs, x),
        "backward": traced_flops(split.backward, params, inputs, split.residuals, x),
        "input": traced_flops(split.input_gradient, params, inputs, split.residuals, x),
        "weight": traced_flops(
            split.weight_gradient, params, inputs, split.residuals, split.pending
        ),
    }


def _split(model: Blueprint, sequence: int) -> tuple[SplitLayer, tuple[Any, Any, Any]]:
    parts = staged(model)
    params = {
        path: jax.ShapeDtypeStruct(spec.shape[1:], jnp.bfloat16)
        for path, spec in model.description.items()
        if is_of_layers(path)
    }
    ids = jax.ShapeDtypeStruct((1, sequence), jnp.int32)
    rows = {"tokens": ids, "positions": ids, "segment_ids": ids}
    inputs = jax.eval_shape(parts.prepare, rows)
    width = next(spec.shape[-1] for path, spec in model.description.items() if "vocab" in spec.axes)
    x = jax.ShapeDtypeStruct((1, sequence, width), jnp.bfloat16)
    return split_layer(parts.layers[0], params, inputs, x), (params, inputs, x)


def _head_products(model: Blueprint, sequence: int) -> float:
    """Three products of the hidden states with the table: logits, and the gradients by both."""
    table = max(spec.size for spec in model.description.values() if "vocab" in spec.axes)
    return 3 * 2.0 * table * sequence


if __name__ == "__main__":
    main()
