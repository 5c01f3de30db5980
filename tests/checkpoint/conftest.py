from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_helpers import make_mesh, put
from object_stores import object_stores, store

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.checkpoint.places import Place

__all__ = ["object_stores", "store"]  # Fixtures.


@pytest.fixture
def open_checkpoints(tmp_path: Path) -> Iterator[Callable[..., Checkpointer]]:
    """Opens checkpointers on one folder; the background threads end with the test."""
    opened: list[Checkpointer] = []

    def open_one(keep: Keep | None = None, directory: Place = tmp_path / "checkpoints"):
        opened.append(Checkpointer(directory, keep or Keep(last=100)))
        return opened[-1]

    yield open_one
    for checkpointer in opened:
        checkpointer.close()


@pytest.fixture
def small() -> dict[str, jax.Array]:
    """A few kilobytes on eight devices."""
    mesh = make_mesh(fsdp=8)
    weight = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    return {
        "params/layers/mlp/up": put(mesh, weight, "fsdp", None),
        "params/norm/scale": put(mesh, np.ones(8, np.float32)),
        "step": put(mesh, np.int32(7)),
    }
