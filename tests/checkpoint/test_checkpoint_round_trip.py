import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_helpers import make_mesh, put, targets
from jax.sharding import NamedSharding, PartitionSpec

from jaxscale.errors import UserError

LAYOUTS = {
    "one device": ({"data": 1}, (), ()),
    "fsdp 8": ({"fsdp": 8}, ("fsdp",), (None, "fsdp")),
    "data 2 fsdp 2 tensor 2": (
        {"data": 2, "fsdp": 2, "tensor": 2},
        ("fsdp", "tensor"),
        (None, ("fsdp", "tensor")),
    ),
}


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "params/layers/attention/query": rng.standard_normal((16, 32)).astype(np.float32),
        "params/embed": rng.standard_normal((8, 64)).astype(ml_dtypes.bfloat16),
        "optimizer/moment": rng.standard_normal((4, 16)).astype(ml_dtypes.float8_e4m3fn),
        "data/position": rng.integers(-(2**31), 2**31, (8, 8), dtype=np.int32),
        "random/key": rng.integers(0, 2**32, (2,), dtype=np.uint32),
        "step": np.array(12345, np.int32),
        "scale": np.array(0.1, ml_dtypes.bfloat16),
    }


def lay_out(layout: str) -> dict[str, jax.Array]:
    axes, first, second = LAYOUTS[layout]
    mesh = make_mesh(**axes)
    spec = {
        "params/layers/attention/query": first,
        "params/embed": second,
        "data/position": second,
    }
    return {path: put(mesh, value, *spec.get(path, ())) for path, value in values().items()}


def assert_bitwise_equal(arrays: dict[str, jax.Array], expected: dict[str, np.ndarray]) -> None:
    assert arrays.keys() == expected.keys()
    for path, value in expected.items():
        assert arrays[path].dtype == value.dtype, path
        assert np.asarray(arrays[path]).tobytes() == value.tobytes(), path


@pytest.mark.parametrize("saved_on", LAYOUTS)
@pytest.mark.parametrize("restored_on", LAYOUTS)
def test_any_mesh_restores_any_other_bitwise(open_checkpoints, saved_on, restored_on):
    checkpointer = open_checkpoints()
    checkpointer.save(3, lay_out(saved_on), {"tokens": 99}, blocking=True)
    target = targets(lay_out(restored_on))
    restored = checkpointer.restore(target)
    assert (restored.step, restored.metadata) == (3, {"tokens": 99})
    assert_bitwise_equal(restored.arrays, values())
    for path, array in restored.arrays.items():
        assert array.sharding == target[path].sharding, path


def test_a_prefix_can_be_restored_alone(open_checkpoints):
    checkpointer = open_checkpoints()
    checkpointer.save(3, lay_out("fsdp 8"), {}, blocking=True)
    params = {p: t for p, t in targets(lay_out("one device")).items() if p.startswith("params/")}
    restored = checkpointer.restore(params, allow_extra=True)
    assert_bitwise_equal(restored.arrays, {path: values()[path] for path in params})


def test_restored_arrays_can_be_donated(open_checkpoints, small):
    checkpointer = open_checkpoints()
    checkpointer.save(3, small, {}, blocking=True)
    restored = checkpointer.restore(targets(small)).arrays["params/layers/mlp/up"]
    expected = np.array(restored) + 1
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    np.testing.assert_array_equal(np.asarray(step(restored)), expected)


def test_a_changed_model_is_told_each_difference(open_checkpoints):
    checkpointer = open_checkpoints()
    checkpointer.save(3, lay_out("fsdp 8"), {}, blocking=True)
    target = targets(lay_out("fsdp 8"))
    sharding = target["step"].sharding
    target["params/layers/attention/query"] = jax.ShapeDtypeStruct(
        (16, 40), jnp.float32, sharding=sharding
    )
    target["params/embed"] = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=sharding)
    target["params/new"] = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)
    del target["random/key"]
    with pytest.raises(UserError) as caught:
        checkpointer.restore(target)
    message = str(caught.value)
    assert "4 arrays differ" in message
    expected_lines = (
        "params/layers/attention/query is [16, 32] in the checkpoint, [16, 40] in the model",
        "params/embed is bfloat16 in the checkpoint, float32 in the model",
        "params/new [4] is in the model, not in the checkpoint",
        "random/key [2] is in the checkpoint, not in the model",
    )
    for line in expected_lines:
        assert line in message


def test_a_long_list_of_differences_is_capped_with_a_count(open_checkpoints, small):
    checkpointer = open_checkpoints()
    checkpointer.save(3, small, {}, blocking=True)
    sharding = NamedSharding(make_mesh(data=1), PartitionSpec())
    missing = {f"params/{i:02}": jax.ShapeDtypeStruct((1,), jnp.int8) for i in range(13)}
    missing = {
        p: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=sharding) for p, t in missing.items()
    }
    with pytest.raises(UserError) as caught:
        checkpointer.restore(targets(small) | missing)
    message = str(caught.value)
    assert "13 arrays differ" in message
    assert "params/09" in message
    assert "params/10" not in message
    assert "... and 3 more" in message


def test_manifest_and_metadata_are_read_without_arrays(open_checkpoints):
    checkpointer = open_checkpoints()
    metadata = {"plan": {"fsdp": 8}, "data": {"position": [1, 2]}, "note": "é"}
    checkpointer.save(3, lay_out("fsdp 8"), metadata, blocking=True)
    assert checkpointer.read_metadata(3) == metadata
    entries = {entry.path: tuple(entry)[1:] for entry in checkpointer.manifest(3)}
    assert entries["params/embed"] == ((8, 64), "bfloat16", 8 * 64 * 2)
    assert entries["step"] == ((), "int32", 4)
    assert entries.keys() == values().keys()


def test_metadata_is_what_it_was_at_the_call(open_checkpoints, small):
    checkpointer = open_checkpoints()
    metadata = {"tokens": 1}
    checkpointer.save(3, small, metadata)
    metadata["tokens"] = 2
    checkpointer.wait()
    assert checkpointer.read_metadata(3) == {"tokens": 1}


def test_what_cannot_be_stored_is_refused_by_name(open_checkpoints, small):
    checkpointer = open_checkpoints()
    with pytest.raises(UserError, match=r"rng is a random key; store jax.random.key_data\(rng\)"):
        checkpointer.save(3, small | {"rng": jax.random.key(0)}, {})
    with pytest.raises(UserError, match=r"params/none has shape \[0, 4\]"):
        checkpointer.save(3, small | {"params/none": jnp.zeros((0, 4))}, {})
    assert checkpointer.steps() == []


def test_restoring_where_nothing_is_says_so(open_checkpoints, small):
    checkpointer = open_checkpoints()
    with pytest.raises(UserError, match="there is no checkpoint in"):
        checkpointer.restore(targets(small))
    checkpointer.save(3, small, {}, blocking=True)
    with pytest.raises(UserError, match=r"no checkpoint 4 in .*; there are \[3\]"):
        checkpointer.restore(targets(small), step=4)


def test_step_zero_is_a_step(open_checkpoints, small):
    checkpointer = open_checkpoints()
    checkpointer.save(0, small, {}, blocking=True)
    assert checkpointer.latest_good() == 0
    assert checkpointer.restore(targets(small)).step == 0
    assert checkpointer.restore(targets(small), step=0, integrity="skip").step == 0


def test_saving_a_step_again_replaces_it(open_checkpoints, small):
    checkpointer = open_checkpoints()
    checkpointer.save(3, small, {"try": 1}, blocking=True)
    checkpointer.save(3, {path: x + 1 for path, x in small.items()}, {"try": 2}, blocking=True)
    restored = checkpointer.restore(targets(small))
    assert restored.metadata == {"try": 2}
    assert int(restored.arrays["step"]) == 8
    assert checkpointer.verify(3) == []
