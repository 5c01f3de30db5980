import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

CHILD = Path(__file__).with_name("checkpoint_saving_child.py")
NUM_KILLS = 6


def save_and_be_killed(directory: Path, first_step: int, delay_seconds: float) -> None:
    command = [sys.executable, str(CHILD), str(directory), str(first_step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{first_step}\n"
        time.sleep(delay_seconds)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_only_checkpoints_that_restore(open_checkpoints, tmp_path):
    checkpointer = open_checkpoints()
    sharding = SingleDeviceSharding(jax.devices()[0])
    target = {
        "params": jax.ShapeDtypeStruct((4, 1024, 1024), jnp.float32, sharding=sharding),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
    }
    delays = random.Random(0)
    newest = 0
    for _ in range(NUM_KILLS):
        # A save of these 16 MiB takes some 0.1 s: the moments fall into every part of it.
        save_and_be_killed(tmp_path / "checkpoints", newest + 1, delays.uniform(0.0, 1.0))
        for step in checkpointer.steps():
            assert checkpointer.verify(step) == []
        if not checkpointer.steps():
            continue
        restored = checkpointer.restore(target)
        assert restored.step == checkpointer.steps()[-1] >= newest
        assert restored.metadata == {"step": restored.step}
        assert np.all(np.asarray(restored.arrays["params"]) == restored.step)
        assert int(restored.arrays["step"]) == restored.step
        newest = restored.step
    assert newest > 0  # Some save was complete, so the loop above tested something.
