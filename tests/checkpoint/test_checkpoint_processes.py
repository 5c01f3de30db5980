import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_helpers import make_mesh
from jax.sharding import NamedSharding, PartitionSpec
from object_stores import free_port

CHILD = Path(__file__).with_name("checkpoint_process_child.py")


def run_two_processes(directory: Path | str) -> list[str]:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    port = str(free_port())
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILD), port, str(index), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0, output
    return outputs


@pytest.mark.slow
def test_two_processes_save_together_and_one_restores_their_checkpoint(open_checkpoints, tmp_path):
    outputs = run_two_processes(tmp_path / "checkpoints")
    assert "process 0: saving checkpoint 3" in outputs[0]
    assert "Cause:" in outputs[0]
    assert "process 1: saving checkpoint 3" in outputs[1]
    assert "failed in another process" in outputs[1]
    checkpointer = open_checkpoints()
    assert checkpointer.steps() == [2, 3]
    assert checkpointer.verify(2) == []
    sharding = NamedSharding(make_mesh(fsdp=2, tensor=4), PartitionSpec("tensor", "fsdp"))
    target = {"params": jax.ShapeDtypeStruct((16, 8), np.float32, sharding=sharding)}
    restored = checkpointer.restore(target, step=2, allow_extra=True)
    expected = np.arange(16 * 8, dtype=np.float32).reshape(16, 8) + 2
    np.testing.assert_array_equal(np.asarray(restored.arrays["params"]), expected)
