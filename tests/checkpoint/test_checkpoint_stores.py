"""Checkpoints on object stores, against servers that speak S3 and GCS."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_helpers import make_mesh, targets
from checkpoint_helpers import put as place_on
from jax.sharding import NamedSharding, PartitionSpec
from object_stores import copy_down, copy_up, objects, put
from test_checkpoint_processes import run_two_processes

from jaxscale.checkpoint import Checkpointer, CheckpointSaveError, Keep, layout
from jaxscale.checkpoint.block_writer import BlockWriter, check_complete
from jaxscale.checkpoint.contents import list_checkpoint, read_contents
from jaxscale.checkpoint.layout import listed_steps
from jaxscale.checkpoint.manifest import ArrayEntry, Manifest, to_json
from jaxscale.checkpoint.places import open_place
from jaxscale.checkpoint.rewrite import Change, rewrite
from jaxscale.checkpoint.store_arrays import dividing_chunk, on_host
from jaxscale.checkpoint.stored import StoredArrays
from jaxscale.errors import UserError

Open = Callable[..., Checkpointer]
Arrays = dict[str, jax.Array]


def assert_same(restored: Arrays, expected: Arrays) -> None:
    assert restored.keys() == expected.keys()
    for path, array in expected.items():
        assert restored[path].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(restored[path]), np.asarray(array), err_msg=path)


@pytest.fixture
def mixed(small: Arrays) -> Arrays:
    """Sharded over two dims, bfloat16, replicated and scalar."""
    mesh = make_mesh(fsdp=2, tensor=4)
    wide = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    return small | {
        "params/wide": place_on(mesh, wide, "fsdp", None, "tensor"),
        "params/half": place_on(mesh, wide.astype("bfloat16"), None, "fsdp", "tensor"),
    }


def test_what_one_mesh_saves_another_restores(
    store: str, open_checkpoints: Open, mixed: Arrays
) -> None:
    place = open_place(f"{store}/checkpoints")
    checkpoints = open_checkpoints(Keep(last=2), place)
    assert checkpoints.steps() == []
    assert checkpoints.latest_good() is None
    for step in (1, 2, 3):
        shifted = {path: array + array.dtype.type(step) for path, array in mixed.items()}
        checkpoints.save(step, shifted, {"at": step})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert not any(name.startswith("1/") for name in objects(place))
    mesh = make_mesh(data=4, tensor=2)
    specs = {"params/wide": (None, "tensor"), "params/half": ("data",)}
    target = {
        path: jax.ShapeDtypeStruct(
            like.shape,
            like.dtype,
            sharding=NamedSharding(mesh, PartitionSpec(*specs.get(path, ()))),
        )
        for path, like in targets(mixed).items()
    }
    restored = checkpoints.restore(target)
    assert (restored.step, restored.metadata) == (3, {"at": 3})
    assert_same(restored.arrays, shifted)
    assert all(array.sharding == target[path].sharding for path, array in restored.arrays.items())


def test_values_are_those_at_the_call_while_the_arrays_are_given_away(
    store: str, open_checkpoints: Open, mixed: Arrays
) -> None:
    checkpoints = open_checkpoints(directory=open_place(store))
    expected = {path: np.array(array) for path, array in mixed.items()}
    step = jax.jit(lambda arrays: {k: v * 0 for k, v in arrays.items()}, donate_argnums=0)
    checkpoints.save(1, mixed, {})
    step(mixed)
    checkpoints.wait()
    restored = checkpoints.restore(
        targets(step({k: jax.numpy.array(v) for k, v in expected.items()}))
    )
    for path, array in expected.items():
        np.testing.assert_array_equal(np.asarray(restored.arrays[path]), array)


def test_what_waits_to_be_written_is_each_element_once_and_a_copy(mixed: Arrays) -> None:
    for path, array in mixed.items():
        blocks = [block for _, block in on_host(path, array).blocks]
        assert sum(block.size for block in blocks) == array.size  # Not once for every replica.
        views = [np.asarray(shard.data) for shard in array.addressable_shards]
        assert not any(np.shares_memory(block, view) for block in blocks for view in views)


def test_what_a_killed_save_left_is_not_seen_and_cleared_by_the_next(
    store: str, open_checkpoints: Open, small: Arrays
) -> None:
    place = open_place(store)
    checkpoints = open_checkpoints(directory=place)
    checkpoints.save(1, small, {}, blocking=True)
    for name in ("2/metadata.json", "2/arrays/d/abc", "3/arrays/d/def"):
        put(f"{store}/{name}", b"half of it")
    put(f"{store}/notes/mine.txt", b"stays")
    assert checkpoints.steps() == [1]
    assert checkpoints.latest_good() == 1
    checkpoints.save(3, small, {}, blocking=True)
    assert checkpoints.steps() == [1, 3]
    assert checkpoints.verify(3) == []
    names = objects(place)
    assert "notes/mine.txt" in names
    assert "3/arrays/d/def" not in names
    assert not any(name.startswith("2/") for name in names)


def test_the_same_step_is_saved_again(store: str, open_checkpoints: Open, small: Arrays) -> None:
    checkpoints = open_checkpoints(directory=open_place(store))
    for value in (1, 2):
        checkpoints.save(4, small, {"value": value}, blocking=True)
    assert checkpoints.verify(4) == []
    assert checkpoints.read_metadata(4) == {"value": 2}


def test_a_damaged_object_is_named_and_its_checkpoint_passed_over(
    store: str, open_checkpoints: Open, small: Arrays
) -> None:
    place, heard = open_place(store), list[str]()
    checkpoints = open_checkpoints(directory=place)
    for step in (1, 2):
        checkpoints.save(step, small, {}, blocking=True)
    name = next(name for name in objects(place) if name.startswith("2/arrays/d/"))
    content = objects(place)[name]
    put(f"{store}/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoints.latest_good(warn=heard.append) == 1
    assert name.removeprefix("2/") in heard[0]
    assert str(place / "2") in heard[0]
    put(f"{store}/{name}", content[:-1])
    (problem,) = checkpoints.verify(2)
    assert problem.reason == f"{len(content) - 1} bytes, was saved with {len(content)}"


def test_orbax_reads_what_comes_from_a_store_and_a_store_takes_what_orbax_wrote(
    store: str, open_checkpoints: Open, mixed: Arrays, tmp_path: Path
) -> None:
    there = open_checkpoints(directory=open_place(f"{store}/there"))
    there.save(5, mixed, {}, blocking=True)
    copy_down(f"{store}/there", tmp_path / "here")
    here = open_checkpoints(directory=tmp_path / "here")
    assert_same(here.restore(targets(mixed)).arrays, mixed)
    here.save(6, mixed, {}, blocking=True)
    copy_up(tmp_path / "here", f"{store}/back")
    assert_same(
        open_checkpoints(directory=open_place(f"{store}/back")).restore(targets(mixed), 6).arrays,
        mixed,
    )


def test_a_save_that_fails_says_where_and_leaves_the_last_one(
    store: str, open_checkpoints: Open, small: Arrays
) -> None:
    kind = store.split("://", maxsplit=1)[0]
    checkpoints = open_checkpoints(directory=open_place(f"{kind}://no-such-bucket/run"))
    with pytest.raises(
        CheckpointSaveError, match=r"no-such-bucket/run failed.*Mend the connection"
    ):
        checkpoints.save(1, small, {}, blocking=True)
    assert checkpoints.steps() == []


def test_copies_between_places_hold_the_same_values(
    store: str, open_checkpoints: Open, mixed: Arrays, tmp_path: Path
) -> None:
    with open_checkpoints(directory=tmp_path / "local") as local:
        local.save(2, mixed, {"name": "x"}, blocking=True)
    up = rewrite(tmp_path / "local" / "2", open_place(store), Change(chunk_bytes=256))
    assert str(up.checkpoint) == f"{store}/2"
    assert_same(open_checkpoints(directory=open_place(store)).restore(targets(mixed)).arrays, mixed)
    listed = list_checkpoint(open_place(store), 2)
    assert listed.bytes_on_disk == sum(map(len, objects(f"{store}/2").values()))
    shown = read_contents(up.checkpoint)
    assert shown.metadata == {"name": "x"}
    assert shown.chunks["params/wide"] == (
        1,
        6,
        8,
    )  # 192 bytes; with another row of 192 it were 384.
    down = rewrite(up.checkpoint, tmp_path / "down", Change(drop=frozenset({"step"})))
    stored, box = StoredArrays(down.checkpoint), (slice(1, 3), slice(0, 6), slice(3, 4))
    np.testing.assert_array_equal(
        stored.read("params/wide", box), np.asarray(mixed["params/wide"])[box]
    )
    with pytest.raises(UserError, match=r"there is a checkpoint .* already"):
        rewrite(up.checkpoint, open_place(store), Change())
    with pytest.raises(UserError, match="cannot put one checkpoint in the place of another"):
        rewrite(up.checkpoint, open_place(store), Change(), existing="replace")
    assert listed_steps(open_place(store)) == [2]


def test_a_copy_that_fails_leaves_nothing(
    store: str, open_checkpoints: Open, small: Arrays, tmp_path: Path
) -> None:
    with open_checkpoints(directory=tmp_path / "local") as local:
        large = small | {"params/norm/scale": small["params/norm/scale"] * 1e6}
        local.save(2, large, {}, blocking=True)
    half = Change(dtype=np.dtype("float16"), file_bytes=64)
    with pytest.raises(UserError, match="too large for float16"):
        rewrite(tmp_path / "local" / "2", open_place(store), half)
    assert objects(store) == {}


@pytest.mark.slow
def test_two_processes_save_to_a_store_together(store: str) -> None:
    run_two_processes(f"{store}/checkpoints")
    names = objects(f"{store}/checkpoints/2")
    assert {f"arrays/ocdbt.process_{index}/manifest.ocdbt" for index in (0, 1)} < names.keys()


def test_a_store_that_cannot_be_reached_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"nowhere://bucket cannot be opened: .*nowhere"):
        open_place("nowhere://bucket")
    with pytest.raises(UserError, match="kept in directories, on gs:// and on s3://"):
        Checkpointer(open_place("memory://bucket/run"), Keep())


@pytest.mark.parametrize(
    ("shape", "max_bytes", "expected"),
    [
        ((12, 10), 480, (12, 10)),
        ((12, 10), 479, (6, 10)),  # Eleven rows would fit; twelve are not made of elevens.
        ((12, 10), 39, (1, 5)),
        ((7, 3), 80, (1, 3)),  # Six rows would fit; seven is a prime.
        ((3, 5), 1, (1, 1)),
        ((), 4, ()),
    ],
)
def test_blocks_divide_a_shard(
    shape: tuple[int, ...], max_bytes: int, expected: tuple[int, ...]
) -> None:
    assert dividing_chunk(shape, 4, max_bytes) == expected


def test_blocks_that_are_lost_are_missed_and_never_read_as_zeros(store: str) -> None:
    entry, place = ArrayEntry("params/w", (4, 4), "float32", 64), open_place(store)
    manifest = Manifest(1, None, None, (entry,), {})
    put(f"{store}/1/metadata.json", to_json(manifest).encode())
    writer = BlockWriter(place / "1" / "arrays", {"params/w": (2, 4)}, 1000)
    writer.write(entry, (slice(0, 2), slice(0, 4)), np.ones((2, 4), np.float32))
    writer.finish()
    with pytest.raises(ValueError, match="params/w has 1 of 2 blocks"):
        check_complete(place / "1" / "arrays", [(entry, (2, 4))])
    stored = StoredArrays(place / "1")
    assert stored.read("params/w", (slice(0, 2), slice(1, 3))).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(UserError, match="params/w cannot be read"):
        stored.read("params/w", (slice(1, 3), slice(0, 4)))


def test_a_checkpoint_that_is_being_removed_is_out_of_sight_first(
    store: str, open_checkpoints: Open, small: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_place(store)
    open_checkpoints(directory=place).save(1, small, {}, blocking=True)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layout, "remove_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        layout.remove(place, 1)
    assert "1/metadata.json" in objects(place)
    assert listed_steps(place) == []
