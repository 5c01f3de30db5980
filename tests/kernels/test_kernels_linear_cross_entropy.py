"""The chunked loss against its definition, in float64, and its memory."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxscale.kernels.linear_cross_entropy.api import (
    LossOptions,
    LossSums,
    Where,
    linear_cross_entropy,
    loss_and_gradients,
)
from jaxscale.kernels.linear_cross_entropy.reference import reference_loss
from jaxscale.kernels.target import Target

OPTIONS = {
    "plain": LossOptions(),
    "z-loss": LossOptions(z_loss=0.1),
    "smoothing": LossOptions(label_smoothing=0.2),
    "softcap": LossOptions(softcap=1.5),
    "padded table": LossOptions(num_real_vocab=29),
    "everything": LossOptions(
        ignore=3, z_loss=0.1, label_smoothing=0.2, softcap=1.5, num_real_vocab=29
    ),
}
# Sums of some hundred terms of size 1 to 10.
FLOAT64 = 1e5 * np.finfo(np.float64).eps
Loss = Callable[..., LossSums]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("chunk", [1, 4, 6, 100], ids=lambda n: f"chunk {n}")
def test_chunks_give_what_the_definition_gives(name: str, chunk: int) -> None:
    with jax.enable_x64(True):
        inputs = _inputs("float64", OPTIONS[name])
        chunked = partial(linear_cross_entropy, options=OPTIONS[name], chunk_tokens=chunk)
        actual = _sums_and_gradients(chunked, inputs)
        wanted = _sums_and_gradients(partial(reference_loss, options=OPTIONS[name]), inputs)
    _assert_close(actual, wanted)


def test_the_definition_is_right_by_hand() -> None:
    # Logits 0 and log 3: probabilities 1/4 and 3/4; targets 1, 0 and one to ignore.
    hidden, table = jnp.ones((3, 1)), jnp.array([[0.0], [np.log(3)]])
    sums = reference_loss(hidden, table, jnp.array([1, 0, -1]), LossOptions(z_loss=0.5))
    nll = -np.log(3 / 4) - np.log(1 / 4)
    np.testing.assert_allclose(sums.nll_sum, nll, rtol=1e-6)
    np.testing.assert_allclose(sums.loss_sum, nll + 2 * 0.5 * np.log(4) ** 2, rtol=1e-6)
    assert sums.weight == 2


def test_the_plain_call_needs_no_gradient() -> None:
    with jax.enable_x64(True):
        inputs = _inputs("float64", OPTIONS["everything"])
        alone = linear_cross_entropy(*inputs, OPTIONS["everything"], 4)
        wanted = reference_loss(*inputs, OPTIONS["everything"])
        jitted = jax.jit(linear_cross_entropy, static_argnums=(3, 4))
        lowered = jitted.lower(*inputs, LossOptions(), 4)
    np.testing.assert_allclose(alone.loss_sum, wanted.loss_sum, rtol=FLOAT64)
    products = lowered.as_text().count("dot_general")
    assert products == 1, "one product a chunk, for the logits"


def test_gradients_scale_with_the_cotangent() -> None:
    with jax.enable_x64(True):
        hidden, table, targets = _inputs("float64")

        def mean(h: jax.Array, t: jax.Array, loss: Loss) -> jax.Array:
            sums = loss(h, t, targets)
            return sums.loss_sum / sums.weight

        chunked = partial(linear_cross_entropy, options=LossOptions(), chunk_tokens=4)
        plain = partial(reference_loss, options=LossOptions())
        actual = jax.grad(mean, (0, 1))(hidden, table, chunked)
        wanted = jax.grad(mean, (0, 1))(hidden, table, plain)
    for ours, theirs in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=FLOAT64)


def test_tokens_without_target_give_no_gradient_nor_nan() -> None:
    hidden, table, targets = _inputs("float32")
    none = jnp.full_like(targets, -1)
    chunked = partial(linear_cross_entropy, options=LossOptions(z_loss=0.1), chunk_tokens=4)
    assert all(not x.any() for x in _sums_and_gradients(chunked, (hidden, table, none)))


def test_bfloat16_runs_when_all_tokens_are_one_chunk() -> None:
    """The CPU backend cannot run every product of bfloat16 that XLA may make of one: as large as this, and compiled."""
    states, table = jnp.ones((32, 32), jnp.bfloat16), jnp.ones((264, 32), jnp.bfloat16)

    @jax.jit
    def gradient(states: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
        return loss_and_gradients(states, table, targets, LossOptions(), 1024)[2]

    found = gradient(states, table, jnp.zeros(32, jnp.int32))
    # Equal states, target 0: 32 (p - [v = 0]) with p = 1/264, the probabilities rounded to bfloat16.
    wanted = 32 * (1 / 264 - (np.arange(264) == 0))[:, None] * np.ones(32)
    np.testing.assert_allclose(found, wanted, rtol=2**-8)


def test_bfloat16_is_as_exact_in_chunks_as_at_once() -> None:
    inputs = _inputs("bfloat16")
    chunked = partial(linear_cross_entropy, options=LossOptions(), chunk_tokens=4)
    plain = partial(reference_loss, options=LossOptions())
    in_chunks, at_once = (_sums_and_gradients(f, inputs) for f in (chunked, plain))
    with jax.enable_x64(True):
        wide = inputs[0].astype(jnp.float64), inputs[1].astype(jnp.float64), inputs[2]
        exact = _sums_and_gradients(plain, wide)
    # Both round the logits' gradient and the results to bfloat16: as exact as the plain form but for the luck of two
    # roundings of the largest value.
    for ours, theirs, truth in zip(in_chunks, at_once, exact, strict=True):
        largest = abs(truth).max()
        error, plain_error = abs(ours - truth).max(), abs(theirs - truth).max()
        assert error <= 1.5 * plain_error + 2 * 2**-8 * largest


@pytest.mark.parametrize("target", [None, Target("gpu", "NVIDIA H200")], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_split_vocabulary_gives_the_same_loss_and_gradients(
    name: str, target: Target | None
) -> None:
    """target: a CPU gathers the targets' logits, accelerators sum them out of their rows."""
    options = OPTIONS[name]
    mesh = jax.make_mesh((4, 2), ("tensor", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, vocab = PartitionSpec("data"), PartitionSpec("tensor")

    def local(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> object:
        sums, to_hidden, to_table = loss_and_gradients(
            hidden, table, targets, options, 4, Where("tensor", target, "xla")
        )
        over_rows = jax.tree.map(lambda x: jax.lax.psum(x, "data"), (sums, to_table))
        return over_rows[0], to_hidden, over_rows[1]

    with jax.enable_x64(True):
        inputs = _inputs("float64", options)
        out_specs = (PartitionSpec(), rows, vocab)
        split = jax.shard_map(
            local, mesh=mesh, in_specs=(rows, vocab, rows), out_specs=out_specs, check_vma=False
        )
        sums, *gradients = jax.jit(split)(*inputs)
        wanted = _sums_and_gradients(partial(reference_loss, options=options), inputs)
    actual = [np.asarray(x) for x in (sums.loss_sum, sums.nll_sum, sums.weight, *gradients)]
    _assert_close(actual, wanted)


def test_logits_of_all_tokens_never_exist() -> None:
    tokens, vocab = 512, 1000
    hidden, table = jnp.ones((tokens, 16)), jnp.ones((vocab, 16))
    targets = jnp.zeros(tokens, jnp.int32)

    def gradient(loss: Loss) -> str:
        def total(h: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
            return loss(h, t, y).loss_sum

        return jax.jit(jax.grad(total, (0, 1))).lower(hidden, table, targets).compile().as_text()

    whole = re.compile(rf"\[({tokens},{vocab}|{vocab},{tokens})\]")
    chunked = partial(linear_cross_entropy, options=LossOptions(), chunk_tokens=64)
    assert not whole.search(gradient(chunked))
    assert whole.search(gradient(partial(reference_loss, options=LossOptions())))


def _inputs(
    dtype: str, options: LossOptions = OPTIONS["plain"]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two rows of seven tokens, a table of 32 rows, and targets below 29, of which two are to ignore."""
    rng = np.random.default_rng(0)
    hidden, table = rng.standard_normal((2, 7, 5)), rng.standard_normal((32, 5))
    targets = rng.integers(0, 29, (2, 7))
    targets[1, 3:5] = options.ignore
    return jnp.asarray(hidden, dtype), jnp.asarray(table, dtype), jnp.asarray(targets)


def _sums_and_gradients(
    loss: Loss, inputs: tuple[jax.Array, jax.Array, jax.Array]
) -> list[np.ndarray]:
    hidden, table, targets = inputs

    def total(h: jax.Array, t: jax.Array) -> tuple[jax.Array, LossSums]:
        sums = loss(h, t, targets)
        return sums.loss_sum, sums

    gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, sums), gradients = gradient(hidden, table)
    found = (sums.loss_sum, sums.nll_sum, sums.weight, *gradients)
    return [np.asarray(x, np.float64) for x in found]


def _assert_close(actual: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for ours, theirs in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT64 * max(1, abs(theirs).max()))
