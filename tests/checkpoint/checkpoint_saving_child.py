"""Saves step after step without end, to be killed. Arguments: DIRECTORY FIRST_STEP.

Each checkpoint's arrays are filled with its step, and every third step is saved twice.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxscale.checkpoint import Checkpointer, Keep


def main(directory: Path, step: int) -> None:
    fill = jax.jit(lambda value: jnp.full((4, 1024, 1024), value, jnp.float32))
    checkpointer = Checkpointer(directory, Keep(last=2))
    while True:
        for _ in range(2 if step % 3 == 0 else 1):
            arrays = {"params": fill(step), "step": jnp.int32(step)}
            checkpointer.save(step, arrays, {"step": step})
            print(step, flush=True)
        step += 1


main(Path(sys.argv[1]), int(sys.argv[2]))
