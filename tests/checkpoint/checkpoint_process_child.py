"""One of two processes of four devices. Arguments: PORT INDEX DIRECTORY."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.checkpoint.places import Place, open_place
from jaxscale.errors import UserError

WEIGHT = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)


def place(sharding: NamedSharding, value: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def shardings(**axes: int) -> dict[str, NamedSharding]:
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    return {
        "params": NamedSharding(mesh, PartitionSpec(*axes)),
        "step": NamedSharding(mesh, PartitionSpec()),
    }


def check_restored(arrays: dict[str, jax.Array], step: int) -> None:
    for shard in arrays["params"].addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), WEIGHT[shard.index] + step)
    assert all(int(shard.data) == step for shard in arrays["step"].addressable_shards)


def main(port: str, index: int, directory: Place) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    assert jax.device_count() == 8
    wide = shardings(fsdp=8)
    checkpointer = Checkpointer(directory, Keep(last=2))
    step_values = (1, 2, 3)
    for step in step_values:
        arrays = {
            "params": place(wide["params"], WEIGHT + step),
            "step": place(wide["step"], np.array(step, np.int32)),
        }
        checkpointer.save(step, arrays, {"at": step})
    checkpointer.wait()
    assert checkpointer.steps() == [2, 3], checkpointer.steps()
    square = shardings(data=2, tensor=4)
    target = {
        "params": jax.ShapeDtypeStruct(WEIGHT.shape, WEIGHT.dtype, sharding=square["params"]),
        "step": jax.ShapeDtypeStruct((), np.int32, sharding=square["step"]),
    }
    check_restored(checkpointer.restore(target).arrays, 3)

    # A file that only one of the processes reads is damaged: both turn to step 2.
    multihost_utils.sync_global_devices("restored")
    if index == 0:
        path = directory / "3" / "metadata.json"
        path.write_text(path.read_text() + " ")
    multihost_utils.sync_global_devices("damaged")
    heard: list[str] = []
    fallback = checkpointer.restore(target, warn=heard.append)
    assert fallback.step == 2
    assert len(heard) == 1, heard
    check_restored(fallback.arrays, 2)

    if not isinstance(directory, Path):
        checkpointer.close()
        return
    # Only process 0 fails, when it makes the checkpoint visible: both learn of it.
    multihost_utils.sync_global_devices("before the failure")
    if index == 0:
        (directory / "3.replaced").write_text("in the way of moving the old step 3 aside")
    multihost_utils.sync_global_devices("blocked")
    checkpointer.save(3, arrays, {})
    try:
        checkpointer.wait()
    except UserError as error:
        print(f"process {index}: {error}", flush=True)
    checkpointer.close()


main(sys.argv[1], int(sys.argv[2]), open_place(sys.argv[3]))
