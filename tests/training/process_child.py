"""One process of a run. Arguments: process, their number, port, configuration, run directory, overrides."""

import sys
from pathlib import Path

import jax


def join(process: int, count: int, port: int) -> None:
    """Before anything asks for devices.

    One process takes gloo too: XLA's own collectives inside a process add in another order.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, process)


def main(config: str, run_dir: str, *overrides: str) -> int:
    from jaxscale.config.loading import load_config
    from jaxscale.training.health.exits import PREEMPTED
    from jaxscale.training.run import train_run

    outcome = train_run(load_config(Path(config), overrides), Path(run_dir))
    return PREEMPTED if outcome.preempted else 0


join(*map(int, sys.argv[1:4]))
sys.exit(main(*sys.argv[4:]))
