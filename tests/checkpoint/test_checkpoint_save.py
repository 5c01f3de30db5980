import logging
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_helpers import file_size_limit, make_mesh, put, targets

from jaxscale.checkpoint import CheckpointSaveError, Keep
from jaxscale.checkpoint.arrays import snapshot
from jaxscale.errors import UserError

MIB = 2**20
# After a failed write Orbax closes its event loop while TensorStore's other writes still end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@partial(jax.jit, donate_argnums=0)
def train_step(state: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x + 1, state)


def noise(mebibytes: int, seed: int = 0) -> np.ndarray:
    """Float32 that does not compress, so that it takes its size on disk and its time to write."""
    return np.random.default_rng(seed).random((8, mebibytes * MIB // 32), np.float32)


def pointers(array: jax.Array) -> set[int]:
    return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_checkpoint_holds_the_values_at_the_call_while_steps_overwrite_them(
    open_checkpoints, tmp_path, num_devices
):
    mesh = make_mesh(fsdp=num_devices)
    start = {f"params/{i}": noise(16, seed=i) for i in range(3)} | {"step": np.int32(0)}
    state = {p: put(mesh, x, *["fsdp"][: x.ndim]) for p, x in start.items()}
    state = train_step(state)
    # One correctly rounded addition. Reading the arrays instead would leave a view of them behind.
    expected = {path: x + np.ones((), x.dtype) for path, x in start.items()}
    saved, target = state, targets(state)
    checkpointer = open_checkpoints()
    checkpointer.save(1, state, {})
    num_steps = 0
    while not (tmp_path / "checkpoints" / "1").exists():
        state = train_step(state)
        num_steps += 1
    jax.block_until_ready(state)
    assert num_steps > 0  # Steps ran while the files were being written,
    assert all(x.is_deleted() for x in saved.values())  # in the very buffers that were saved.
    checkpointer.wait()
    restored = checkpointer.restore(target).arrays
    for path, value in expected.items():
        assert np.array_equal(np.asarray(restored[path]), value), path


def test_host_memory_is_copied_before_it_is_written_from():
    # Orbax writes CPU arrays from a zero-copy view; only a copy is out of the steps' reach.
    arrays = {"a": put(make_mesh(fsdp=8), noise(1), "fsdp"), "b": jnp.ones((4, 4)) + 1}
    copies = snapshot(arrays)
    for path, array in arrays.items():
        assert not pointers(array) & pointers(copies[path])
        assert copies[path].sharding == array.sharding
        assert np.array_equal(np.asarray(copies[path]), np.asarray(array))


def test_a_second_save_waits_for_the_first_and_both_are_there(open_checkpoints, small):
    checkpointer = open_checkpoints()
    for step in (1, 2, 3):
        checkpointer.save(step, small, {"at": step})
    checkpointer.wait()
    assert checkpointer.steps() == [1, 2, 3]
    assert all(checkpointer.verify(step) == [] for step in (1, 2, 3))


def large(num_devices: int = 1) -> dict[str, jax.Array]:
    """16 MiB. On several devices the writes beside the failed one go on for a moment."""
    return {"params": put(make_mesh(fsdp=num_devices), noise(16), "fsdp")}


def finish(checkpointer):
    """Waits for the background half without taking its outcome."""
    checkpointer._pending.outcome.exception()


@pytest.mark.parametrize("surface", ["wait", "check", "save"])
def test_a_failed_background_save_surfaces_at_the_next_call(open_checkpoints, small, surface):
    checkpointer = open_checkpoints(Keep(last=1))
    checkpointer.save(1, small, {}, blocking=True)
    with file_size_limit(MIB):
        checkpointer.save(2, large(num_devices=8), {})
        finish(checkpointer)
    calls = {
        "wait": checkpointer.wait,
        "check": checkpointer.check,
        "save": lambda: checkpointer.save(3, small, {}),
    }
    with pytest.raises(CheckpointSaveError, match=r"saving checkpoint 2 to .* failed") as caught:
        calls[surface]()
    assert "File too large" in str(caught.value)
    assert "it needs 16.8 MB" in str(caught.value)  # 16 MiB
    assert "The previous checkpoint (step 1) is intact." in str(caught.value)
    # Reported once; keep-last-1 removed nothing for a save that failed; the next one works.
    checkpointer.check()
    checkpointer.wait()
    assert checkpointer.steps() == [1]
    assert checkpointer.verify(1) == []
    checkpointer.save(3, small, {}, blocking=True)
    assert checkpointer.steps() == [3]


def test_check_is_silent_while_a_save_runs_and_after_a_good_one(open_checkpoints, small):
    checkpointer = open_checkpoints()
    checkpointer.check()
    checkpointer.save(1, small, {})
    checkpointer.check()
    finish(checkpointer)
    checkpointer.check()
    assert checkpointer.steps() == [1]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        result = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here; the EFBIG tests cover the same path")
    if result.returncode:
        pytest.skip(f"mounting needs root ({result.stderr.strip()}); the EFBIG tests cover it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_names_the_numbers_and_leaves_the_previous_checkpoint(
    open_checkpoints, small, tiny_disk
):
    checkpointer = open_checkpoints(directory=tiny_disk / "checkpoints")
    checkpointer.save(1, small, {}, blocking=True)
    with pytest.raises(CheckpointSaveError) as caught:
        checkpointer.save(2, large(), {})
    message = str(caught.value)
    assert str(tiny_disk / "checkpoints") in message
    assert "it needs 16.8 MB" in message
    assert "8.3 MB are free" in message or "8.2 MB are free" in message  # 8 MiB less step 1
    assert "The previous checkpoint (step 1) is intact." in message
    assert "No space left on device" in message
    assert checkpointer.steps() == [1]
    assert sorted(path.name for path in (tiny_disk / "checkpoints").iterdir()) == ["1"]
    assert checkpointer.restore(targets(small)).step == 1


def test_a_directory_that_cannot_be_made_is_a_save_error(open_checkpoints, small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    checkpointer = open_checkpoints(directory=tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointSaveError, match="There is no earlier checkpoint"):
        checkpointer.save(1, small, {})


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(
    open_checkpoints, small, tmp_path
):
    with pytest.raises(TypeError, match="not JSON serializable"):
        open_checkpoints().save(1, small, {"path": Path("x")})
    assert not (tmp_path / "checkpoints").exists()


def test_orbax_is_quiet_and_others_are_not(open_checkpoints, small, caplog):
    checkpointer = open_checkpoints()
    with caplog.at_level(logging.DEBUG, logger="absl"), file_size_limit(MIB):
        checkpointer.save(1, large(), {})
        with pytest.raises(UserError):
            checkpointer.wait()
        logging.getLogger("absl").warning("from elsewhere")
    assert [r.getMessage() for r in caplog.records if r.name == "absl"] == ["from elsewhere"]
