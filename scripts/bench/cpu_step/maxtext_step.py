"""MaxText's own trainer on the same shapes, in the interpreter that runs this file.

The seconds in its log are those between two dispatches; here a step lasts from one report to the next.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import shape

SETTINGS = {
    "run_name": "bench",
    "hardware": "cpu",
    "skip_jax_distributed_system": "true",
    "dataset_type": "synthetic",
    "enable_checkpointing": "false",
    "decoder_block": "llama2",
    "base_emb_dim": shape.WIDTH,
    "base_num_query_heads": shape.HEADS,
    "base_num_kv_heads": shape.KV_HEADS,
    "base_mlp_dim": shape.MLP,
    "base_num_decoder_layers": shape.LAYERS,
    "head_dim": shape.HEAD_DIM,
    "vocab_size": shape.VOCAB,
    "max_target_length": shape.SEQUENCE,
    "per_device_batch_size": shape.BATCH,
    "weight_dtype": "float32",
    "attention": "dot_product",
    "logits_via_embedding": "false",
    "log_period": 1,
}


def run(chosen: shape.Options, remat: str = "full") -> None:
    """`remat`: MaxText's remat_policy; full is its default."""
    with tempfile.TemporaryDirectory() as folder:
        ends, losses = _train(_command(chosen, remat, folder))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    steps = [after - before for before, after in pairwise(ends)]
    timing = shape.Timing(
        first_step_s=ends[0],
        steps_s=steps[chosen.warmup - 1 :],
        loss=losses[-1],
        peak_rss_gib=used.ru_maxrss / 2**20,
        faults_per_step=None,
        cpu_s_per_step=None,
    )
    print(json.dumps(asdict(timing)))


def _command(chosen: shape.Options, remat: str, folder: str) -> list[str]:
    found = find_spec("maxtext")
    if found is None or found.origin is None:
        raise SystemExit(f"{sys.executable} has no MaxText: run.py --python maxtext=PATH")
    settings = SETTINGS | {
        "steps": chosen.warmup + chosen.steps,
        "dtype": chosen.dtype,
        "remat_policy": remat,
        "base_output_directory": folder,
    }
    base = Path(found.origin).parent / "configs/base.yml"
    pairs = [f"{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "maxtext.trainers.pre_train.train", str(base), *pairs]


def _train(command: list[str]) -> tuple[list[float], list[float]]:
    """Seconds from the start to each completed step, and the losses."""
    start, ends, losses = time.monotonic(), list[float](), list[float]()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "completed step:" in line:
                ends.append(time.monotonic() - start)
                losses.append(float(line.split(" loss: ")[1].split(",")[0]))
    if process.returncode:
        raise SystemExit(f"MaxText ended with status {process.returncode}")
    return ends, losses
