"""Boxes of stored arrays are those of the arrays, however they were split over devices and blocks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_helpers import make_mesh, put
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.checkpoint.block_files import find_blocks
from jaxscale.checkpoint.manifest import read_manifest, to_json
from jaxscale.checkpoint.stored import Box, StoredArrays
from jaxscale.errors import UserError

STACK = np.arange(6 * 16 * 8, dtype=np.float32).reshape(6, 16, 8)
ODD = np.arange(7 * 5, dtype=np.int32).reshape(7, 5)
HALF = np.arange(300, dtype=np.float32).astype(jnp.bfloat16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of a few bytes, inside the tree, and of over a kilobyte, in files of their own."""
    mesh = make_mesh(fsdp=4, tensor=2)
    arrays = {
        "params/rows": put(mesh, STACK, None, "fsdp"),
        "params/columns": put(mesh, STACK, None, None, "tensor"),
        "params/both": put(mesh, STACK, None, "fsdp", "tensor"),
        "params/whole": jax.device_put(STACK),
        "params/odd": jax.device_put(ODD),
        "params/half": jax.device_put(HALF),
        "step": put(mesh, np.int32(3)),
    }
    directory = tmp_path_factory.mktemp("stored")
    with Checkpointer(directory, Keep()) as checkpoints:
        checkpoints.save(3, arrays, {}, blocking=True)
    return directory / "3"


EXPECTED = {
    "params/rows": STACK,
    "params/columns": STACK,
    "params/both": STACK,
    "params/whole": STACK,
    "params/odd": ODD,
    "params/half": HALF,
    "step": np.array(3, np.int32),
}


@st.composite
def path_and_box(draw: st.DrawFn) -> tuple[str, Box]:
    path = draw(st.sampled_from(sorted(EXPECTED)))
    box = []
    for size in EXPECTED[path].shape:
        start = draw(st.integers(0, size - 1))
        box.append(slice(start, draw(st.integers(start + 1, size))))
    return path, tuple(box)


@given(path_and_box())
def test_any_box_is_that_of_the_array(checkpoint: Path, case: tuple[str, Box]) -> None:
    path, box = case
    found = StoredArrays(checkpoint).read(path, box)
    assert found.dtype == EXPECTED[path].dtype
    np.testing.assert_array_equal(found, EXPECTED[path][box])


def test_blocks_are_found_in_files_and_in_the_tree(checkpoint: Path) -> None:
    """Both ways of reading are among those that the boxes above take."""
    blocks = find_blocks(checkpoint / "arrays")
    assert blocks["params/whole/0.0.0"].length == STACK.nbytes
    assert not [key for key in blocks if key.startswith("params/both")]


def test_compressed_arrays_are_read_too(tmp_path: Path, checkpoint: Path) -> None:
    writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=True))
    writer.save((tmp_path / "arrays").absolute(), args=ocp.args.PyTreeSave({"a": STACK}))
    writer.close()
    manifest = read_manifest(checkpoint)
    entry = next(e for e in manifest.arrays if e.path == "params/whole")._replace(path="a")
    (tmp_path / "metadata.json").write_text(to_json(type(manifest)(3, None, None, (entry,), {})))
    box = (slice(1, 3), slice(2, 9), slice(0, 8))
    np.testing.assert_array_equal(StoredArrays(tmp_path).read("a", box), STACK[box])


def test_what_is_read_lands_in_the_array_that_is_given(checkpoint: Path) -> None:
    out = np.zeros((2, 16, 8), np.float32)
    box = (slice(2, 4), slice(0, 16), slice(0, 8))
    assert StoredArrays(checkpoint).read("params/columns", box, out) is out
    np.testing.assert_array_equal(out, STACK[2:4])


def test_a_missing_and_a_short_file_are_named(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, Keep()) as checkpoints:
        checkpoints.save(1, {"params/a": jax.device_put(STACK)}, {}, blocking=True)
    stored = StoredArrays(tmp_path / "1")
    box = tuple(slice(0, size) for size in STACK.shape)
    file = find_blocks(tmp_path / "1" / "arrays")["params/a/0.0.0"].file
    content = file.read_bytes()
    file.write_bytes(content[:100])
    with pytest.raises(UserError, match=r"params/a cannot be read from .*ends early"):
        stored.read("params/a", box)
    file.unlink()
    with pytest.raises(UserError, match=f"params/a cannot be read from .*{file.name}"):
        stored.read("params/a", box)
    with pytest.raises(UserError, match="no checkpoint at"):
        StoredArrays(tmp_path / "2")
