"""One process of a run. Arguments: process, their number, port, configuration, run directory, overrides."""

import sys
from pathlib import Path

import jax

process, count, port = map(int, sys.argv[1:4])
config, run_dir, *overrides = sys.argv[4:]
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, process)

from jaxscale.config.loading import load_config  # noqa: E402
from jaxscale.training.health.exits import PREEMPTED  # noqa: E402
from jaxscale.training.run import train_run  # noqa: E402

outcome = train_run(load_config(Path(config), overrides), Path(run_dir))
sys.exit(PREEMPTED if outcome.preempted else 0)
