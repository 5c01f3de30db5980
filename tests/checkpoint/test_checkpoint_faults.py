"""Storage that is slow, and storage that changes what it holds."""

import threading
from collections.abc import Callable, Iterator

import fsspec
import jax
import numpy as np
import pytest
from checkpoint_helpers import targets
from object_stores import BUCKET, objects, put
from slow_store import slow_s3

from jaxscale.checkpoint import Checkpointer
from jaxscale.checkpoint.places import open_place

Open = Callable[..., Checkpointer]
Arrays = dict[str, jax.Array]


@pytest.fixture
def flowing(object_stores: None) -> Iterator[threading.Event]:
    """Clients that were opened before keep the server's own address."""
    fsspec.filesystem("s3").clear_instance_cache()
    with slow_s3() as event:
        yield event
    fsspec.filesystem("s3").clear_instance_cache()


def test_steps_go_on_while_storage_stands_still(
    flowing: threading.Event, open_checkpoints: Open, small: Arrays
) -> None:
    """Not a block of the first checkpoint is taken before a hundred steps are made over its arrays. The second
    waits for the first; both hold what was there when they were asked for."""
    step = jax.jit(lambda arrays: {k: v + 1 for k, v in arrays.items()}, donate_argnums=0)
    before = {path: np.array(array) for path, array in small.items()}
    checkpoints = open_checkpoints(directory=open_place(f"s3://{BUCKET}/slow"))
    flowing.clear()
    state = small
    checkpoints.save(1, state, {})
    for _ in range(100):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.check()
    assert checkpoints.steps() == []
    assert not any("/arrays/d/" in name for name in objects(f"s3://{BUCKET}/slow"))
    second = threading.Thread(target=checkpoints.save, args=(2, state, {}), daemon=True)
    second.start()
    second.join(1)
    assert second.is_alive(), "one save at a time"
    flowing.set()
    second.join(60)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    for saved, added in ((1, 0), (2, 100)):
        restored = checkpoints.restore(targets(state), saved).arrays
        for path, array in before.items():
            np.testing.assert_array_equal(
                np.asarray(restored[path]), array + array.dtype.type(added)
            )


def test_a_flipped_bit_in_any_object_is_named_and_the_checkpoint_before_taken(
    object_stores: None, open_checkpoints: Open, small: Arrays
) -> None:
    url = f"s3://{BUCKET}/flipped"
    checkpoints = open_checkpoints(directory=open_place(url))
    for step in (1, 2):
        checkpoints.save(step, small, {"at": step}, blocking=True)
    names = [name for name in objects(url) if name.startswith("2/")]
    kinds = {"checksums.json", "metadata.json", "manifest.ocdbt"}
    assert kinds < {name.rsplit("/", 1)[1] for name in names}
    for name in names:
        good = objects(url)[name]
        middle = len(good) // 2
        put(f"{url}/{name}", good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :])
        heard: list[str] = []
        assert checkpoints.latest_good(warn=heard.append) == 1, name
        assert name.removeprefix("2/") in heard[0]
        put(f"{url}/{name}", good)
    assert checkpoints.restore(targets(small)).step == 2
