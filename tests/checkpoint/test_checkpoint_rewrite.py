"""A rewritten checkpoint restores on any mesh and holds what was asked for; the source stays as it was."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_helpers import make_mesh, put, targets

from jaxscale.checkpoint import Checkpointer
from jaxscale.checkpoint.casting import float_dtype, num_overflows
from jaxscale.checkpoint.rewrite import Change, rewrite
from jaxscale.checkpoint.stored import StoredArrays
from jaxscale.checkpoint.streamed import boxes, chunk_shape
from jaxscale.errors import UserError

Open = Callable[..., Checkpointer]
LARGE = np.random.default_rng(0).standard_normal((6, 32, 40), np.float32)


@pytest.fixture
def source(open_checkpoints: Open, small: dict[str, jax.Array], tmp_path: Path) -> Path:
    arrays = small | {
        "params/large": put(make_mesh(fsdp=8), LARGE, None, "fsdp"),
        "optimizer/adam/mu/large": put(make_mesh(fsdp=8), 2 * LARGE, None, "fsdp"),
        "optimizer/adam/count": jnp.int32(7),
    }
    open_checkpoints().save(5, arrays, {"plan": {"fsdp": 8}}, blocking=True)
    return tmp_path / "checkpoints" / "5"


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("chunk_bytes", [200, 4_000, 10**6])
def test_other_blocks_hold_the_same_values_on_any_mesh(
    open_checkpoints: Open,
    small: dict[str, jax.Array],
    source: Path,
    tmp_path: Path,
    chunk_bytes: int,
) -> None:
    before = files(source)
    done = rewrite(source, tmp_path / "new", Change(chunk_bytes=chunk_bytes, file_bytes=20_000))
    assert files(source) == before
    assert done.checkpoint == tmp_path / "new" / "5"
    stored = StoredArrays(done.checkpoint)
    for path, entry in stored.entries.items():
        chunk = stored.chunk_shape(path)
        assert np.prod(chunk) * np.dtype(entry.dtype).itemsize <= chunk_bytes
    fresh = open_checkpoints(directory=tmp_path / "new")
    assert fresh.verify(5) == []
    assert fresh.read_metadata(5) == {"plan": {"fsdp": 8}}
    mesh = make_mesh(data=2, tensor=4)
    target = targets({path: put(mesh, np.asarray(array)) for path, array in small.items()})
    target["params/large"] = targets({"x": put(mesh, LARGE, None, "tensor", "data")})["x"]
    restored = fresh.restore(target, allow_extra=True).arrays
    np.testing.assert_array_equal(np.asarray(restored["params/large"]), LARGE)
    for path, array in small.items():
        np.testing.assert_array_equal(np.asarray(restored[path]), np.asarray(array))


def test_data_files_have_the_size_that_was_asked_for(source: Path, tmp_path: Path) -> None:
    rewrite(source, tmp_path / "new", Change(chunk_bytes=2_000, file_bytes=16_000))
    sizes = [path.stat().st_size for path in (tmp_path / "new/5/arrays/d").iterdir()]
    # 62 kB of arrays: blocks are whole, and the tree takes a few kilobytes.
    assert max(sizes) <= 16_000 + 2_000 + 6_000
    assert 4 <= len(sizes) <= 12


def test_pruning_leaves_the_parameters_alone(source: Path, tmp_path: Path) -> None:
    odd = tmp_path / "100%20 new #1"  # As part of a URL it would mean another place.
    done = rewrite(source, odd, Change(drop=frozenset({"optimizer"})))
    assert done.checkpoint.parent == odd
    paths = {entry.path for entry in done.arrays}
    assert paths == {"params/layers/mlp/up", "params/norm/scale", "params/large", "step"}
    box = tuple(slice(0, size) for size in LARGE.shape)
    np.testing.assert_array_equal(StoredArrays(done.checkpoint).read("params/large", box), LARGE)


def test_in_place_the_new_one_takes_the_place_of_the_old(
    open_checkpoints: Open, source: Path, tmp_path: Path
) -> None:
    change = Change(drop=frozenset({"optimizer"}))
    with pytest.raises(UserError, match=r"there is a checkpoint .* already"):
        rewrite(source, source.parent, change)
    rewrite(source, source.parent, change, existing="replace")
    checkpoints = open_checkpoints()
    assert checkpoints.steps() == [5]
    assert checkpoints.verify(5) == []
    assert not [entry for entry in checkpoints.manifest(5) if "optimizer" in entry.path]
    assert [path.name for path in source.parent.iterdir()] == ["5"]


def test_floats_are_rounded_and_counters_stay(source: Path, tmp_path: Path) -> None:
    done = rewrite(source, tmp_path / "new", Change(dtype=float_dtype("bf16")))
    stored = StoredArrays(done.checkpoint)
    box = tuple(slice(0, size) for size in LARGE.shape)
    found = stored.read("params/large", box)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, LARGE.astype(jnp.bfloat16))
    assert stored.read("optimizer/adam/count", ()).dtype == np.int32
    assert done.bytes < 0.6 * sum(e.bytes for e in StoredArrays(source).manifest.arrays)


def test_overflows_are_counted_and_nothing_is_left(open_checkpoints: Open, tmp_path: Path) -> None:
    values = LARGE.copy()
    values[1, 2, 3], values[5, 0, :2], values[0, 0, 0] = 1e30, -7e4, np.inf
    open_checkpoints().save(1, {"params/a": jax.device_put(values)}, {}, blocking=True)
    source, fp16 = tmp_path / "checkpoints" / "1", float_dtype("fp16")
    with pytest.raises(UserError, match=r"3 values of .* too large for float16") as caught:
        rewrite(source, tmp_path / "new", Change(dtype=fp16, chunk_bytes=1000))
    assert "params/a: 3" in str(caught.value)
    assert not list((tmp_path / "new").iterdir())
    done = rewrite(source, tmp_path / "new", Change(dtype=fp16, overflow="allow"))
    assert dict(done.overflows) == {"params/a": 3}


def test_a_damaged_source_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    data = max(source.rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="is damaged; nothing was written") as caught:
        rewrite(source, tmp_path / "new", Change())
    assert data.name in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_writer_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def fail(_num_bytes: int) -> None:
        raise KeyboardInterrupt

    change = Change(chunk_bytes=1000, file_bytes=2000)
    with pytest.raises(KeyboardInterrupt):
        rewrite(source, tmp_path / "new", change, progress=fail)
    assert not list((tmp_path / "new").iterdir())


def test_blocks_are_contiguous_and_as_large_as_they_may_be() -> None:
    assert chunk_shape((126, 1024, 4096), 4, 2**20) == (1, 64, 4096)
    assert chunk_shape((126, 8, 16), 4, 2**20) == (126, 8, 16)
    assert chunk_shape((10, 10**6), 4, 1000) == (1, 250)
    assert chunk_shape((), 4, 1000) == ()
    assert list(boxes((3, 4), (2, 4))) == [
        (slice(0, 2), slice(0, 4)),
        (slice(2, 3), slice(0, 4)),
    ]


@pytest.mark.parametrize(
    ("before", "dtype", "lost"),
    [
        ([65_504, 65_520, -1e9, np.inf, np.nan], "float16", 2),
        ([3.3e38, 3.4e38, np.inf, np.nan], "bfloat16", 1),
        ([3.4e38, 1.0], "float32", 0),
    ],
)
def test_only_finite_values_that_become_infinite_count(
    before: list[float], dtype: str, lost: int
) -> None:
    values = np.array(before, np.float32)
    with np.errstate(over="ignore"):
        assert num_overflows(values, values.astype(float_dtype(dtype))) == lost
