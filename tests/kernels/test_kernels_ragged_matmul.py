"""Ragged products against their definition in float64: every group, every row, and the gradients."""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import UserError
from jaxscale.kernels.ragged_matmul import pallas_tpu, xla
from jaxscale.kernels.ragged_matmul.api import choices, ragged_matmul
from jaxscale.kernels.ragged_matmul.reference import reference_ragged_matmul
from jaxscale.kernels.ragged_matmul.visits import visits_by_group, visits_by_tile
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Tiles

TOKENS, INWARD, OUTWARD = 50, 36, 40
SIZES = {
    "uneven": [7, 1, 22, 20],
    "empty groups": [0, 17, 0, 33],
    "all in one": [0, 0, 50, 0],
    "rows beyond": [9, 0, 13, 3],
    "no rows": [0, 0, 0, 0],
    "whole tiles": [16, 0, 16, 16],
}
INTERPRETED = Target("tpu", "TPU v5", interpreted=True)
TILES = Tiles(16, 16, 16)  # 4 by 3 by 3 of them, the last ones partial.
# Tokens of a step, widths and experts: Mixtral 8x7B, Qwen3 30B-A3B, and the same over eight devices.
PRODUCTION = {
    "wide": (32768, 4096, 14336, 8),
    "many groups": (32768, 2048, 768, 128),
    "a part": (8192, 4096, 1792, 8),
}
Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Found = list[np.ndarray]


def _tiled(x: jax.Array, y: jax.Array, weight: jax.Array, sizes: jax.Array) -> list[jax.Array]:
    """The three products by the TPU kernel, watched for races."""
    run = {"target": INTERPRETED, "tiles": TILES, "detect_races": True}
    return [
        pallas_tpu.rows_by_matrices(x, weight, sizes, **run),
        pallas_tpu.rows_by_matrices(y, weight, sizes, transposed=True, **run),
        pallas_tpu.rows_over_rows(x, y, sizes, **run),
    ]


def _looped(x: jax.Array, y: jax.Array, weight: jax.Array, sizes: jax.Array) -> list[jax.Array]:
    """The three products by loops over blocks of 16 rows."""
    return [
        xla.rows_by_matrices(x, weight, sizes, block=16),
        xla.rows_by_matrices(y, weight, sizes, transposed=True, block=16),
        xla.rows_over_rows(x, y, sizes, block=16),
    ]


def _plain(
    x: jax.Array, y: jax.Array, weight: jax.Array, sizes: jax.Array, *, product: Product
) -> list[jax.Array]:
    out, pull = jax.vjp(lambda x, weight: product(x, weight, sizes), x, weight)
    return [out, *pull(y)]


FORMS = {
    "tiled": jax.jit(_tiled),
    "looped": jax.jit(_looped),
    "chosen": jax.jit(partial(_plain, product=ragged_matmul)),
    "ragged_dot": jax.jit(partial(_plain, product=jax.lax.ragged_dot)),
    "definition": jax.jit(partial(_plain, product=reference_ragged_matmul)),
}


@cache
def _inputs(dtype: str, scale: float = 1.0) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = (TOKENS, INWARD), (TOKENS, OUTWARD), (4, INWARD, OUTWARD)
    return tuple(jnp.asarray(scale * rng.standard_normal(shape), dtype) for shape in shapes)


def _run(form: str, inputs: tuple[jax.Array, ...], case: str) -> Found:
    sizes = jnp.asarray(SIZES[case], jnp.int32)
    return [np.asarray(each, np.float64) for each in FORMS[form](*inputs, sizes)]


def _exact(inputs: tuple[jax.Array, ...], case: str) -> Found:
    with jax.enable_x64(True):
        return _run("definition", tuple(each.astype(jnp.float64) for each in inputs), case)


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize(
    ("form", "dtype", "scale"),
    [
        ("tiled", "float32", 1.0),
        ("looped", "float32", 1.0),
        ("chosen", "float32", 1.0),
        ("chosen", "bfloat16", 1e15),
    ],
)
def test_errors_are_those_of_xla(
    form: str, case: str, dtype: str, scale: float, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = _inputs(dtype, scale)
    truth, theirs = _exact(inputs, case), _run("ragged_dot", inputs, case)
    for exact, ours, plain in zip(truth, _run(form, inputs, case), theirs, strict=True):
        largest = abs(exact).max()
        # Half an ulp of the largest value: what the last rounding alone can do to either.
        rounding = float(jnp.finfo(dtype).eps) / 2 * largest
        assert abs(ours - exact).max() <= 1.5 * abs(plain - exact).max() + rounding
    assert "RACE" not in capfd.readouterr().err


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("form", ["looped", "chosen"])
def test_float64_is_exact(form: str, case: str) -> None:
    with jax.enable_x64(True):
        inputs = _inputs("float32")
        wide = tuple(each.astype(jnp.float64) for each in inputs)
        found = _run(form, wide, case)
    for exact, ours in zip(_exact(inputs, case), found, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-13)  # 50 terms of size 10.


def test_the_definition_is_right_by_hand() -> None:
    x, weight = jnp.ones((4, 2)), jnp.array([[[1.0], [2.0]], [[10.0], [20.0]]])
    out = reference_ragged_matmul(x, weight, jnp.array([1, 2]))
    assert out.ravel().tolist() == [3, 30, 30, 0]


def test_runs_are_bitwise_the_same() -> None:
    inputs = _inputs("float32")
    once, again = (_run("tiled", inputs, "uneven") for _ in range(2))
    assert all((a == b).all() for a, b in zip(once, again, strict=True))


def test_sizes_beyond_the_rows_are_cut() -> None:
    x, _, weight = _inputs("float32")
    many, cut = (jnp.array(sizes) for sizes in ([40, 30, 5, 2], [40, 10, 0, 0]))
    assert (ragged_matmul(x, weight, many) == ragged_matmul(x, weight, cut)).all()


def test_interpreted_kernels_serve_the_public_call() -> None:
    x, y, weight = _inputs("float32")
    sizes = jnp.asarray(SIZES["uneven"])
    forced = partial(ragged_matmul, kernels="interpret_tpu")
    ours = jax.jit(partial(_plain, product=forced))(x, y, weight, sizes)
    for exact, found in zip(_exact((x, y, weight), "uneven"), ours, strict=True):
        # Sums of at most 50 products of size 10, each rounded once.
        np.testing.assert_allclose(found, exact, rtol=0, atol=50 * 10 * 2**-24)


def test_memory_does_not_grow_with_the_groups() -> None:
    """JAX's own form masks the rows once for each group on CPU: tokens times inward times groups."""
    tokens, width, groups = 512, 128, 16
    x, weight = jnp.ones((tokens, width)), jnp.ones((groups, width, width))
    sizes = jnp.full(groups, tokens // groups)

    def temporary(product: Product) -> int:
        def total(x: jax.Array, weight: jax.Array) -> jax.Array:
            return product(x, weight, sizes).sum()

        compiled = jax.jit(jax.grad(total, (0, 1))).lower(x, weight).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(ragged_matmul) < 4 * x.nbytes
    assert temporary(jax.lax.ragged_dot) > groups * x.nbytes


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=4, max_size=4),
    st.sampled_from([1, 37, 64]),
    st.sampled_from([1, 16]),
)
def test_visits_meet_every_row_of_every_group_once(
    sizes: list[int], tokens: int, rows: int
) -> None:
    ends = np.minimum(np.cumsum(sizes), tokens)
    owner = np.searchsorted(ends, np.arange(tokens), side="right")  # One beyond: no group.
    for order in (visits_by_tile, visits_by_group):
        visits = order(jnp.asarray(sizes), tokens, rows)
        met = np.full(tokens, len(sizes))
        times = np.zeros(tokens, int)
        for group, tile, start, end, product in zip(*map(np.asarray, visits), strict=True):
            mine = np.arange(max(start, tile * rows), min(end, (tile + 1) * rows))
            met[mine] = group if product else len(sizes)
            times[mine] += 1
        assert (times == (1 if order is visits_by_tile else owner < len(sizes))).all()
        assert (met == owner).all()
    by_tile, by_group = (
        f(jnp.asarray(sizes), tokens, rows) for f in (visits_by_tile, visits_by_group)
    )
    assert set(np.diff(by_tile.tile).tolist()) <= {0, 1}, "tiles are written one after another"
    assert set(by_tile.tile.tolist()) == set(range(-(-tokens // rows)))
    assert set(np.diff(by_group.group).tolist()) <= {0, 1}
    assert set(by_group.group.tolist()) == set(range(len(sizes)))


@pytest.mark.parametrize(
    ("platform", "kind", "names"),
    [
        ("cpu", "cpu", ("xla", "xla", "xla")),
        ("tpu", "TPU v5", ("ragged_dot", "ragged_dot", "xla")),
        ("gpu", "NVIDIA H200", ("xla", "xla", "xla")),
        ("gpu", "NVIDIA A100-SXM4-80GB", ("xla", "xla", "xla")),
    ],
)
def test_nothing_is_taken_that_was_not_measured(
    platform: str, kind: str, names: tuple[str, ...]
) -> None:
    chosen = choices("bfloat16", (4096, 512, 512, 8), Target(platform, kind))
    assert tuple(choice.name for choice in chosen.values()) == names
    assert "pallas_tpu" in chosen["nn"].declined


def test_what_declines_says_why() -> None:
    x, _, weight = _inputs("float32")
    with pytest.raises(UserError, match="each of the 4 matrices"):
        ragged_matmul(x, weight, jnp.zeros(4, int), kernels="ragged_dot")
    with pytest.raises(UserError, match="written for Hopper"):
        choices("bfloat16", (64, 64, 64, 4), Target("gpu", "NVIDIA A100-SXM4-80GB"), "pallas")
    with pytest.raises(UserError, match="4 groups but group sizes of shape"):
        ragged_matmul(x, weight, jnp.zeros(3, int))
    with pytest.raises(UserError, match="should be"):
        ragged_matmul(x.T, weight, jnp.zeros(4, int))


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 11, 2), reason="interpreting needs JAX 0.11.2")
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_gpu_kernels_are_as_exact_as_xla(layout: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Groups share tiles of rows, the last tile is cut short, one group is empty. 43 rows have no group."""
    rng = np.random.default_rng(0)
    shapes = (300, 128), (300, 128), (4, 128, 128)
    x, y, weight = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes)
    sizes = jnp.array([7, 0, 150, 100], jnp.int32)
    forward, to_x, to_weight = _plain(x, y, weight, sizes, product=jax.lax.ragged_dot)
    with jax.enable_x64(True):
        wide = (each.astype(jnp.float64) for each in (x, y, weight))
        truth = _plain(*wide, sizes, product=reference_ragged_matmul)
    plain = {"nn": forward, "nt": to_x, "tn": to_weight}[layout]
    exact = np.asarray(truth[["nn", "nt", "tn"].index(layout)])
    ours, theirs = (
        np.asarray(each, np.float64) for each in (_on_gpu(layout, x, y, weight, sizes), plain)
    )
    assert abs(ours - exact).max() <= 1.5 * abs(theirs - exact).max()
    assert (ours[1] == 0).all() if layout == "tn" else (ours[257:] == 0).all()
    assert "RACE" not in capfd.readouterr().err


def _on_gpu(
    layout: str, x: jax.Array, y: jax.Array, weight: jax.Array, sizes: jax.Array
) -> jax.Array:
    from jaxscale.kernels.ragged_matmul import pallas_gpu, pallas_gpu_weights

    h200 = Target("gpu", "NVIDIA H200", interpreted=True)
    tiles = pallas_gpu.GpuTiles(64, 64, 64, 2)
    if layout == "tn":
        return pallas_gpu_weights.rows_over_rows(x, y, sizes, h200, tiles, detect_races=True)
    turned = layout == "nt"
    return pallas_gpu.rows_by_matrices(
        y if turned else x, weight, sizes, h200, tiles, transposed=turned, detect_races=True
    )


@pytest.mark.parametrize("sizes", PRODUCTION.values(), ids=PRODUCTION)
def test_gpu_kernels_lower(sizes: tuple[int, int, int, int]) -> None:
    """What does not fit into shared memory, and layouts that wgmma does not take, are errors here."""
    tokens, inward, outward, groups = sizes
    x, y, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((tokens, inward), (tokens, outward), (groups, inward, outward))
    )
    of_groups = jax.ShapeDtypeStruct((groups,), jnp.int32)
    product = partial(ragged_matmul, kernels="pallas", target=Target("gpu", "NVIDIA H200"))
    traced = jax.jit(partial(_plain, product=product)).trace(x, y, weight, of_groups)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 3  # Forward, and the gradients of x and of the weights.


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("cluster", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("sizes", PRODUCTION.values(), ids=PRODUCTION)
def test_tpu_kernels_compile(cluster: str, sizes: tuple[int, int, int, int]) -> None:
    from jaxscale.hardware.by_name import cluster_by_name
    from jaxscale.kernels.target import target_of
    from jaxscale.parallel.topology import abstract_devices, prepare_process

    prepare_process()
    device = abstract_devices(cluster_by_name(cluster))[0]
    here = jax.sharding.SingleDeviceSharding(device)
    tokens, inward, outward, groups = sizes
    x, y, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here)
        for shape in ((tokens, inward), (tokens, outward), (groups, inward, outward))
    )
    of_groups = jax.ShapeDtypeStruct((groups,), jnp.int32, sharding=here)
    product = partial(ragged_matmul, kernels="pallas", target=target_of([device]))
    compiled = jax.jit(partial(_plain, product=product)).lower(x, y, weight, of_groups).compile()
    assert compiled.as_text().count("tpu_custom_call") >= 3
