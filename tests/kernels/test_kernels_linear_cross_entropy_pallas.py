"""The Pallas kernels of the loss, interpreted: against float64, watched for races, over split columns; and compiled."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxscale.errors import UserError
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.linear_cross_entropy import pallas_gpu, pallas_tpu
from jaxscale.kernels.linear_cross_entropy.api import (
    LossOptions,
    Where,
    choose_kernel,
    linear_cross_entropy,
    loss_and_gradients,
)
from jaxscale.kernels.linear_cross_entropy.cases import cases
from jaxscale.kernels.linear_cross_entropy.form import LossCall
from jaxscale.kernels.linear_cross_entropy.logits import RowSums, over_devices, row_sums
from jaxscale.kernels.linear_cross_entropy.reference import reference_loss
from jaxscale.kernels.target import Target, reason_without
from jaxscale.kernels.tiled_gpu import GpuTiles
from jaxscale.kernels.tiles import Tiles

TOKENS, EMBED, VOCAB, REAL = 37, 20, 70, 61
# By platform: the kernel with small tiles, the last ones partial, and the dtype of its operands. A GPU's second tile of
# columns has six, and no real one where ids are padded.
KERNELS: dict[str, tuple[Callable[..., Any], str]] = {
    "tpu": (
        partial(
            pallas_tpu.logits_and_sums,
            target=Target("tpu", "TPU v5", interpreted=True),
            tiles=Tiles(16, 16, 16),
        ),
        "float32",
    ),
    "gpu": (
        partial(
            pallas_gpu.logits_and_sums,
            target=Target("gpu", "NVIDIA H200", interpreted=True),
            tiles=GpuTiles(m=64, n=64, k=64, stages=2),
        ),
        "bfloat16",
    ),
}
H200 = Target("gpu", "NVIDIA H200")
PLAIN = LossOptions()
EVERYTHING = LossOptions(
    ignore=3, z_loss=0.1, label_smoothing=0.2, softcap=2.5, num_real_vocab=REAL
)


def _inputs(
    options: LossOptions,
    dtype: str = "float32",
    scale: float = 1.0,
    sizes: tuple[int, int] = (TOKENS, VOCAB),
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(scale * rng.standard_normal((n, EMBED)), dtype) for n in sizes)
    targets = rng.integers(0, REAL, sizes[0])
    targets[5:9] = options.ignore
    return hidden, table, jnp.asarray(targets)


def _compared(sums: RowSums) -> dict[str, np.ndarray]:
    """The normalizer is relative to the highest logit: compared as what it stands for."""
    names = ("log_normalizer", "at_target", "total")
    return {name: np.asarray(getattr(sums, name), np.float64) for name in names}


def _skip_without(platform: str) -> None:
    reason = reason_without(Target(platform, "", interpreted=True))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("keep_logits", [True, False], ids=["logits", "sums alone"])
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["small", "large"])
@pytest.mark.parametrize("platform", KERNELS)
def test_sums_of_tiles_are_those_of_the_row(
    platform: str,
    options: LossOptions,
    scale: float,
    capfd: pytest.CaptureFixture[str],
    keep_logits: object,
) -> None:
    _skip_without(platform)
    kernel, dtype = KERNELS[platform]
    hidden, table, targets = _inputs(options, dtype, scale)
    run = partial(
        kernel,
        options=options,
        real_vocab=options.num_real_vocab,
        keep_logits=bool(keep_logits),
        detect_races=True,
    )
    logits, sums = jax.jit(run)(hidden, table, targets)
    with jax.enable_x64(True):
        exact = hidden.astype(jnp.float64) @ table.astype(jnp.float64).T
        truth = _compared(row_sums(exact, targets, options))
        exact = np.asarray(exact)
    in_fp32 = hidden.astype(jnp.float32) @ table.astype(jnp.float32).T
    found, plain = _compared(sums), _compared(row_sums(in_fp32, targets, options))
    for name, right in truth.items():
        ours, theirs = found[name], plain[name]
        rounding = 4 * 2**-24 * (1 + abs(right).max())
        assert abs(ours - right).max() <= 1.5 * abs(theirs - right).max() + rounding, name
    assert (logits is None) is not bool(keep_logits)
    if logits is not None:
        np.testing.assert_allclose(logits, exact, rtol=0, atol=4 * 2**-24 * abs(exact).max())
    said = capfd.readouterr()
    assert "RACE" not in said.out + said.err


@pytest.mark.parametrize("keep_logits", [True, False], ids=["logits", "sums alone"])
def test_no_race_between_the_tiles_of_one_multiprocessor(
    capfd: pytest.CaptureFixture[str], keep_logits: object
) -> None:
    """Two by three tiles on a GPU's two: what leaves for one tile is on its way when the next is summed."""
    _skip_without("gpu")
    hidden, table, targets = _inputs(PLAIN, "bfloat16", sizes=(150, 140))
    run = partial(
        KERNELS["gpu"][0], options=PLAIN, keep_logits=bool(keep_logits), detect_races=True
    )
    sums = jax.jit(run)(hidden, table, targets)[1]
    in_fp32 = hidden.astype(jnp.float32) @ table.astype(jnp.float32).T
    truth = row_sums(in_fp32, targets, PLAIN)
    np.testing.assert_allclose(sums.log_normalizer, truth.log_normalizer, rtol=2e-6)
    said = capfd.readouterr()
    assert "RACE" not in said.out + said.err


@pytest.mark.parametrize("platform", KERNELS)
def test_sums_of_two_devices_columns_are_those_of_the_row(platform: str) -> None:
    """The second device holds token ids from 40 on, of which the last nine are padding."""
    _skip_without(platform)
    kernel, dtype = KERNELS[platform]
    hidden, table, targets = _inputs(EVERYTHING, dtype)

    def sums_of(first: int, end: int) -> RowSums:
        run = partial(kernel, options=EVERYTHING, real_vocab=REAL, first_column=jnp.asarray(first))
        found: RowSums = jax.jit(run)(hidden, table[first:end], targets)[1]
        return found

    both = jax.tree.map(lambda *parts: jnp.stack(parts), sums_of(0, 40), sums_of(40, VOCAB))
    put = partial(over_devices, vocab_axis="columns")
    found = jax.tree.map(lambda array: array[0], jax.vmap(put, axis_name="columns")(both))
    in_fp32 = hidden.astype(jnp.float32) @ table.astype(jnp.float32).T
    truth = _compared(row_sums(in_fp32, targets, EVERYTHING))
    for name, right in truth.items():
        # Sums of 61 terms in fp32, in another order.
        np.testing.assert_allclose(_compared(found)[name], right, rtol=0, atol=64 * 2**-24 * 10)


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize(
    ("platform", "dtype"), [("tpu", "float32"), ("tpu", "bfloat16"), ("gpu", "bfloat16")]
)
def test_errors_of_gradients_are_those_of_xla(
    options: LossOptions, platform: str, dtype: str
) -> None:
    _skip_without(platform)
    inputs = _inputs(options, dtype)

    def found(kernels: str) -> list[np.ndarray]:
        run = partial(loss_and_gradients, options=options, chunk_tokens=10)
        sums, *gradients = jax.jit(partial(run, where=Where(kernels=kernels)))(*inputs)
        return [np.asarray(x, np.float64) for x in (sums.loss_sum, sums.nll_sum, *gradients)]

    with jax.enable_x64(True):
        wide = inputs[0].astype(jnp.float64), inputs[1].astype(jnp.float64)

        def definition(hidden: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
            sums = reference_loss(hidden, table, inputs[2], options)
            return sums.loss_sum, sums.nll_sum

        (loss, nll), gradients = jax.value_and_grad(definition, (0, 1), has_aux=True)(*wide)
    truth = [np.asarray(x) for x in (loss, nll, *gradients)]
    for exact, ours, theirs in zip(
        truth, found(f"interpret_{platform}"), found("xla"), strict=True
    ):
        rounding = float(jnp.finfo(dtype).eps) * abs(exact).max()
        assert abs(ours - exact).max() <= 1.5 * abs(theirs - exact).max() + rounding


@pytest.mark.parametrize("platform", KERNELS)
def test_the_same_bits_twice(platform: str) -> None:
    _skip_without(platform)
    hidden, table, targets = _inputs(EVERYTHING, "bfloat16")
    where = Where(kernels=f"interpret_{platform}")
    run = jax.jit(
        lambda *arrays: loss_and_gradients(*arrays, EVERYTHING, chunk_tokens=20, where=where)
    )
    once, again = (jax.tree.leaves(run(hidden, table, targets)) for _ in range(2))
    for left, right in zip(once, again, strict=True):
        np.testing.assert_array_equal(left, right)


def test_columns_split_over_devices_add_up() -> None:
    """Ten ids of padding fill most of the last device's eighteen."""
    options = LossOptions(label_smoothing=0.2, z_loss=0.1, num_real_vocab=REAL)
    hidden, table, targets = _inputs(options)
    table = jnp.pad(table, ((0, 2), (0, 0)))
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,))
    vocab = PartitionSpec("tensor")

    def run(where: Where) -> Any:
        def local(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
            return loss_and_gradients(hidden, table, targets, options, 100, where)

        specs = (PartitionSpec(), vocab, PartitionSpec())
        outs = (PartitionSpec(), PartitionSpec(), vocab)
        split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)
        return jax.tree.leaves(jax.jit(split)(hidden, table, targets))

    ours, theirs = (run(Where("tensor", kernels=kernels)) for kernels in ("interpret_tpu", "xla"))
    for left, right in zip(ours, theirs, strict=True):
        # Sums of 61 terms and of 37 tokens, in fp32.
        np.testing.assert_allclose(left, right, rtol=0, atol=64 * 2**-24 * abs(right).max())


def test_a_kernel_is_taken_only_where_it_was_measured() -> None:
    call = LossCall("logits", "bfloat16", 1024, 2048, 128256)
    choice, target = choose_kernel(call, Target("tpu", "TPU v5"))
    assert (choice.name, target.interpreted) == ("xla", False)
    assert "not measured on TPU v5" in choice.declined["pallas_tpu"]
    assert choose_kernel(call, Target("tpu", "TPU v5"), "pallas")[0].name == "pallas_tpu"
    on_hopper, _ = choose_kernel(call, H200)
    assert on_hopper.name == "xla"
    assert "not measured on NVIDIA H200" in on_hopper.declined["pallas_gpu"]
    assert choose_kernel(call, H200, "pallas")[0].name == "pallas_gpu"
    with pytest.raises(UserError, match="it is a TPU kernel, and this is NVIDIA H200"):
        choose_kernel(call, H200, "pallas_tpu")
    wide = LossCall("logits", "float32", 1024, 2048, 128256)
    with pytest.raises(UserError, match="it multiplies bfloat16 or float16, not float32"):
        choose_kernel(wide, H200, "pallas")


@pytest.mark.slow
@pytest.mark.parametrize("embed", [2048, 4096, 8192])
@pytest.mark.parametrize("tensor", [1, 8])
def test_it_lowers_for_hopper_with_every_configuration_that_tuning_tries(
    embed: int, tensor: int
) -> None:
    """Widths of Llama 1B, 8B and 70B. Lowering says whether tiles fit shared memory, and layouts `wgmma`."""
    for case in cases(1024, embed, 128256 // tensor, "bfloat16"):
        for config in ({}, *case.candidates["pallas_gpu"]):
            function = case.run(Choice("pallas_gpu", {}, config=config, target=H200), H200)
            lowered = jax.jit(function).trace(*case.operands).lower(lowering_platforms=("cuda",))
            assert "mosaic_gpu" in lowered.as_text()


def test_a_choice_that_was_made_is_what_runs() -> None:
    """As measuring needs it: with a configuration that no table has."""
    here = Target("cpu", "cpu")
    for case in cases(24, 16, 40, "float32"):
        hidden, table, targets = case.inputs(jax.random.key(0))
        choice = Choice(
            "pallas_tpu", {}, config={"n": 16}, target=KERNELS["tpu"][0].keywords["target"]
        )
        found = jax.jit(case.run(choice, here))(hidden, table, targets)
        plain = jax.jit(case.run(Choice("xla", {}, target=here), here))(hidden, table, targets)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        assert targets.min() >= 0
        assert targets.max() < table.shape[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("cluster", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_it_compiles_and_takes_the_logits_out_of_memory(cluster: str) -> None:
    from jaxscale.hardware.by_name import cluster_by_name
    from jaxscale.kernels.target import target_of
    from jaxscale.parallel.topology import abstract_devices, prepare_process

    prepare_process()
    device = abstract_devices(cluster_by_name(cluster))[0]
    # Llama 3.2 1B with its vocabulary over four devices, two rows of 4096.
    tokens, embed, vocab, chunk = 8192, 2048, 128256 // 4, 1024
    here = jax.sharding.SingleDeviceSharding(device)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=here)
        for shape, dtype in (
            ((tokens, embed), jnp.bfloat16),
            ((vocab, embed), jnp.bfloat16),
            ((tokens,), jnp.int32),
        )
    ]
    where = Where(target=target_of([device]), kernels="pallas")

    def ours(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
        return linear_cross_entropy(hidden, table, targets, PLAIN, chunk, where).loss_sum

    def plain(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
        return reference_loss(hidden, table, targets, PLAIN).loss_sum

    def peak(loss: Any) -> int:
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
        assert (loss is ours) is ("tpu_custom_call" in compiled.as_text())
        return int(compiled.memory_analysis().peak_memory_in_bytes)

    # Of the logits of all tokens two chunks stay: they, and their gradient.
    removed = 4 * vocab * (tokens - 2 * chunk)
    # What the chunked form has and the plain one has not: the fp32 sum of the table's gradient.
    added = 4 * vocab * embed
    assert peak(plain) - peak(ours) > removed - added
