"""The one model and batch that every contender trains, and what a contender prints."""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 8192, 512, 8, 8, 4, 64, 1536
SEQUENCE, BATCH = 512, 8
LEARNING_RATE, BETAS, WEIGHT_DECAY = 3e-4, (0.9, 0.95), 0.1
ROPE_BASE, NORM_EPSILON, INIT_SCALE = 10_000.0, 1e-5, 0.02


@dataclass(frozen=True)
class Options:
    contender: str
    dtype: str
    steps: int
    warmup: int


@dataclass(frozen=True)
class Timing:
    """Seconds of the first step (compilation included) and of each timed one; peak memory; faults and CPU a step."""

    first_step_s: float
    steps_s: list[float]
    loss: float
    peak_rss_gib: float
    faults_per_step: float
    cpu_s_per_step: float


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    return Options(**vars(parser.parse_args()))


def measure(step: Callable[[], float], chosen: Options) -> None:
    """Time `step`, which runs one training step to its end and returns the loss, and print the result as JSON."""
    first, _ = _timed(step)
    for _ in range(chosen.warmup - 1):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    steps, losses = zip(*(_timed(step) for _ in range(chosen.steps)), strict=True)
    after = resource.getrusage(resource.RUSAGE_SELF)
    timing = Timing(
        first_step_s=first,
        steps_s=list(steps),
        loss=losses[-1],
        peak_rss_gib=after.ru_maxrss / 2**20,
        faults_per_step=(after.ru_minflt - before.ru_minflt) / chosen.steps,
        cpu_s_per_step=(_cpu(after) - _cpu(before)) / chosen.steps,
    )
    print(json.dumps(asdict(timing)))


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    loss = step()
    return time.perf_counter() - start, loss


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
