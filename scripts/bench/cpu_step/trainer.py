"""Our trainer: a whole run through `train_run`, or only its compiled step called in a bare loop on one batch.

Text, store, checkpoint and metrics are those of a real run; only evaluation and samples are off.
"""

import json
import resource
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import jax
import numpy as np
import shape

from jaxscale.config.run import RunConfig
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.job import make_job
from jaxscale.training.run import train_run
from jaxscale.training.state import init_state, state_shardings
from jaxscale.training.step import compile_step, make_train_step

TEXT = Path(__file__).parents[3] / "configs/text/moby-dick.txt"


def config(chosen: shape.Options, folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "bench",
            "model": {
                "family": "llama3",
                "vocab_size": shape.VOCAB,
                "max_positions": shape.SEQUENCE,
                "num_layers": shape.LAYERS,
                "embed_dim": shape.WIDTH,
                "num_heads": shape.HEADS,
                "num_kv_heads": shape.KV_HEADS,
                "head_dim": shape.HEAD_DIM,
                "mlp_dim": shape.MLP,
                "rope_base": shape.ROPE_BASE,
            },
            "data": {
                "train": str(TEXT),
                "sequence_length": shape.SEQUENCE,
                "store": str(folder / "stores"),
            },
            "training": {
                "steps": chosen.warmup + chosen.steps,
                "global_batch": shape.BATCH,
                "optimizer": {"learning_rate": shape.LEARNING_RATE},
                "clip_norm": None,
                "eval_every": 10**6,
                "sample_every": 10**6,
            },
            "plan": {"precision": chosen.dtype, "layer_unroll": chosen.unroll},
            "checkpoint": {"every": 10**6},
            "telemetry": {"log_every": 1, "trackers": []},
        }
    )


def run(chosen: shape.Options) -> None:
    """Steps as the run itself recorded them."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        train_run(config(chosen, Path(folder)), directory, say=lambda _: None)
        lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        records = [line for line in lines if "loss" in line]
        summary = json.loads((directory / "summary.json").read_text())
    timing = shape.Timing(
        first_step_s=summary["first_step_seconds"],
        steps_s=[record["step_seconds"] for record in records[chosen.warmup :]],
        loss=records[-1]["loss"],
        peak_rss_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        faults_per_step=None,
        cpu_s_per_step=None,
        data_wait_s=mean(record["data_wait_seconds"] for record in records[chosen.warmup :]),
    )
    print(json.dumps(asdict(timing)))


def run_step(chosen: shape.Options) -> None:
    """The same compiled step without anything around it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = config(chosen, Path(folder))
        job = make_job(settings, Path(folder) / "run")
        make = make_train_step(
            job.model, job.placement, job.optimizer, job.schedule, settings.training
        )
        step = compile_step(make, state_shardings(job.specs, job.placement), job.placement)
        state = init_state(job.model, job.optimizer, job.placement, seed=0, averaged=False)
        rows = job.batches.rows(0, 0, shape.BATCH)
        sharding = batch_sharding(job.placement, shape.BATCH, shape.SEQUENCE)
        batch = place_batch(rows, sharding, shape.BATCH)

    def one() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch))
        return float(np.asarray(metrics["loss"]))

    shape.measure(one, chosen)
