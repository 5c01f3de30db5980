"""The one model and batch that every contender trains, and what a contender prints."""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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
    unroll: int


@dataclass(frozen=True)
class Timing:
    """Seconds from the start of the process to the end of its first step, and of each timed step; peak memory; page
    faults and processor seconds a step, where they can be told from the rest of the run; wait for data a step.
    """

    first_step_s: float
    steps_s: list[float]
    loss: float
    peak_rss_gib: float
    faults_per_step: float | None
    cpu_s_per_step: float | None
    data_wait_s: float | None = None


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--unroll", type=int, default=0, help="plan.layer_unroll")
    return Options(**vars(parser.parse_args()))


def measure(step: Callable[[], float], chosen: Options) -> None:
    """Time `step`, which runs one training step to its end and returns the loss, and print the result as JSON."""
    step()
    first = since_process_start()
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


def since_process_start() -> float:
    """Wall seconds since the system started this process (Linux: field 22 of /proc/self/stat, proc(5))."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    loss = step()
    return time.perf_counter() - start, loss


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
