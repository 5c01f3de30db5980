"""From the start of a process to its first step, for a run that goes on from a checkpoint: JSON, a line a restart.

    python scripts/bench/restart.py --trees . /path/of/another/checkout --rounds 3 [--cold]

The model of configs/quickstart.yaml, so wide that its checkpoint has 300 MB. Each tree restarts the same run in turns.
--cold: no compiled program is kept, as on a machine without the cache of the one before.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# 25 million parameters, each with two moments, in fp32.
WIDE = (
    "model.embed_dim=512",
    "model.num_layers=8",
    "model.num_heads=8",
    "model.mlp_dim=1536",
    "model.vocab_size=2048",
    "training.global_batch=2",
    "training.schedule.name=constant",
    "training.schedule.warmup_steps=0",
    "training.eval_every=0",
    "training.eval_batches=1",
    "training.sample_tokens=0",
    "data.eval_fraction=0",
    "checkpoint.every=0",
    "checkpoint.keep_last=1",
    "telemetry.trackers=[]",
    "plan.data=1",
)


def train(tree: Path, run: Path, steps: int, *, cold: bool) -> dict[str, float]:
    """Goes on to `steps`; what the run says of its last start, in seconds."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    if cold:
        environment["JAX_COMPILATION_CACHE_DIR"] = ""
    words = [*WIDE, f"data.store={run.parent / 'stores'}", f"training.steps={steps}"]
    config = str(ROOT / "configs/quickstart.yaml")
    subprocess.run(
        [sys.executable, "-m", "jaxscale", "train", config, *words, "--run-dir", str(run)],
        cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    first = json.loads((run / "summary.json").read_text())["first_step_seconds"]
    lines = (run / "events.jsonl").read_text().splitlines()
    seconds = json.loads(lines[-1])["seconds"]
    return {
        "first_step": first,
        **{kind: seconds.get(kind, 0.0) for kind in ("startup", "compile")},
    }


def restarted(tree: Path, folder: Path, *, cold: bool) -> dict[str, float]:
    """A restart of a copy of the run: the same step from the same checkpoint, so the same program."""
    run = folder / "copy"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "run", run)
    return train(tree, run, 2, cold=cold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=Path, nargs="+", default=[ROOT], help="absolute paths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the run here, and use it again")
    arguments = parser.parse_args()
    folder, cold = arguments.folder or Path(tempfile.mkdtemp()), arguments.cold
    if not (folder / "run/summary.json").is_file():
        train(arguments.trees[0], folder / "run", 1, cold=cold)
        restarted(arguments.trees[0], folder, cold=cold)  # Fills the cache.
    for _ in range(arguments.rounds):
        for tree in arguments.trees:
            found = restarted(tree, folder, cold=cold)
            print(json.dumps({"tree": str(tree), "cold": cold, **found}), flush=True)


if __name__ == "__main__":
    main()
