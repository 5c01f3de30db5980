"""One process that measures one case: `python -m planner_gpu.measuring "1b 8x2048/4 none"`.

The step is compiled before anything is on the device: what the compiler tries out there cannot be taken for the step's
peak. The last line printed is the result as JSON, behind a mark.
"""

import argparse
import json
import sys
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from variants import Size, Timing, measure, text

from jaxscale.config.run import RunConfig
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.parallel.placement import Placement
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.losses import Batch
from jaxscale.training.lowering import abstract_job
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import TrainState, init_state
from planner_gpu.cases import Case, parse_case, sections

MARK = "RESULT "
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_BATCHES = 2
_CUDNN = "__cudnn$fmhaSoftmax"


def main() -> None:
    arguments = _arguments()
    case = parse_case(arguments.case)
    if arguments.wait:
        sys.stdin.readline()  # The device is not touched while another process measures.
    device = jax.devices()[0] if arguments.ahead is None else _absent(arguments.ahead)
    found = _result(case, device, Timing(arguments.warmup, arguments.groups, arguments.steps))
    found["versions"] = {name: version(name) for name in _PACKAGES}
    print(MARK + json.dumps(found))


def _absent(cluster: str) -> jax.Device:
    prepare_process()
    return abstract_devices(parse_cluster(cluster))[0]


def _result(case: Case, device: jax.Device, timing: Timing) -> dict[str, Any]:
    found: dict[str, Any] = {"status": "ok", "device": device.device_kind}
    try:
        _measure(case, device, timing, found)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found |= {"status": "out of memory", "error": str(error)[:300]}
    return found


def _measure(case: Case, device: jax.Device, timing: Timing, found: dict[str, Any]) -> None:
    """Fill `found` as far as it goes: for a device that is not there, what the compiler says."""
    started = time.time()
    job = abstract_job(case.config, case.plan, [device], packed=case.packed)
    lowered = job.lower()
    found["fused_attention"] = _CUDNN in lowered.as_text()
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    found["compiled_peak_bytes"] = memory.peak_memory_in_bytes
    found["compile_seconds"] = time.time() - started
    if device not in jax.local_devices():
        return
    found["peak_after"] = {"compiling": _peak(device)}
    training = Training(compiled, fresh_state(case.config, job.placement))
    batches = [make_batch(case, job.placement, seed) for seed in range(_BATCHES)]
    jax.block_until_ready(training.state)
    found["peak_after"]["creating the state"] = _peak(device)
    result = measure(partial(training.advance, batches), float, timing, started)
    found["peak_after"]["steps"] = _peak(device)
    found |= {"steps": result.step, "losses": [result.losses[0], result.losses[-1]]}
    found["bytes_limit"] = (device.memory_stats() or {}).get("bytes_limit")


class Training:
    """A compiled step, and the state that it changes."""

    def __init__(self, step: jax.stages.Compiled, state: TrainState) -> None:
        self.step, self.state = step, state

    def advance(self, batches: list[Batch], index: int) -> jax.Array:
        """One step; the loss, still on the device."""
        self.state, metrics = self.step(self.state, batches[index % len(batches)])
        loss: jax.Array = metrics["loss"]
        return loss


def fresh_state(config: RunConfig, placement: Placement) -> TrainState:
    training = config.training
    model = blueprint(model_builder(config.model))
    peak = training.optimizer.learning_rate
    schedule = learning_rate(training.schedule, peak=peak, steps=training.steps)
    optimizer = make_optimizer(training.optimizer, schedule, model.description)
    return init_state(model, optimizer, placement, seed=0, averaged=False)


def make_batch(case: Case, placement: Placement, seed: int) -> Batch:
    """On the device. Packed rows hold two documents each."""
    shape = case.rows, case.sequence
    arrays = text(Size(case.sequence, sections(case.model)), case.rows, seed)
    absent: dict[str, Any] = {"segment_ids": None, "positions": None}
    if case.packed:
        place = np.broadcast_to(np.arange(case.sequence, dtype=np.int32), shape)
        half = case.sequence // 2
        arrays["segment_ids"] = 1 + place // half
        arrays["positions"] = place % half
    return {**absent, **place_batch(arrays, batch_sharding(placement, *shape), case.rows)}


def _peak(device: jax.Device) -> int | None:
    """Bytes, the most since the process started; None where the device does not count them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--ahead", help="compile for this cluster, which is not there")
    parser.add_argument("--wait", action="store_true", help="for a line on standard input")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
