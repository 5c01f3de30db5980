import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

CHILD = Path(__file__).with_name("checkpoint_saving_child.py")


def after(seconds: float) -> Callable[[Path], bool]:
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() > end


def when_there_is(pattern: str) -> Callable[[Path], Callable[[Path], bool]]:
    """The moment when something new that matches appears in the directory."""

    def moment(directory: Path) -> Callable[[Path], bool]:
        before = set(directory.glob(pattern))
        return lambda directory: bool(set(directory.glob(pattern)) - before)

    return moment


# A save of the child's 16 MiB takes some 0.1 s, so random moments fall into every part of it;
# the others aim at the short steps between the last array and the last pruned file.
DELAYS = [random.Random(0).uniform(0.0, 0.8) + 0.03 * i for i in range(6)]
MOMENTS = {f"after {delay:.2f} s": lambda _, delay=delay: after(delay) for delay in DELAYS} | {
    "arrays complete": when_there_is("*.saving/arrays"),
    "metadata written": when_there_is("*.saving/metadata.json"),
    "checksums begun": when_there_is("*.saving/checksums.json"),
    "made visible": when_there_is("[0-9]*[0-9]"),
    "old one replaced": when_there_is("*.replaced"),
    "old one going": when_there_is("*.deleting"),
}


def save_and_be_killed(
    directory: Path, first_step: int, moment: Callable[[Path], Callable[[Path], bool]]
) -> None:
    command = [sys.executable, str(CHILD), str(directory), str(first_step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{first_step}\n"
        come = moment(directory)
        deadline = time.monotonic() + 20
        while not come(directory):
            assert time.monotonic() < deadline, "the moment never came"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_only_checkpoints_that_restore(open_checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    checkpointer = open_checkpoints()
    sharding = SingleDeviceSharding(jax.devices()[0])
    target = {
        "params": jax.ShapeDtypeStruct((4, 1024, 1024), jnp.float32, sharding=sharding),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
    }
    newest = 0
    for name, moment in MOMENTS.items():
        save_and_be_killed(directory, newest + 1, moment)
        for step in checkpointer.steps():
            assert checkpointer.verify(step) == [], f"killed: {name}"
        if not checkpointer.steps():
            continue
        restored = checkpointer.restore(target)
        assert restored.step == checkpointer.steps()[-1] >= newest
        assert restored.metadata == {"step": restored.step}
        assert np.all(np.asarray(restored.arrays["params"]) == restored.step)
        assert int(restored.arrays["step"]) == restored.step
        newest = restored.step
    assert newest > 0  # Some save was complete, so the loop above tested something.
