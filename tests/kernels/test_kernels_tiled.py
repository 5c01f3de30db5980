"""Tiled kernels under the interpreters' race detectors, at two tiles along every dim."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.kernels.target import Target, reason_without
from jaxscale.kernels.tiles import Layout, TiledProduct, Tiles

TPU = Target("tpu", "TPU v5", interpreted=True)
GPU = Target("gpu", "NVIDIA H200", interpreted=True)


def _operands(
    layout: Layout, m: int, n: int, k: int
) -> tuple[jnp.ndarray, jnp.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    left, right = (
        jnp.asarray(random.standard_normal(shape), "bfloat16") for shape in ((m, k), (k, n))
    )
    exact = np.asarray(left, np.float64) @ np.asarray(right, np.float64)
    return left.T if layout[0] == "t" else left, right.T if layout[1] == "t" else right, exact


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
@pytest.mark.parametrize("target", [TPU, GPU], ids=["tpu", "gpu"])
def test_no_race_and_no_wrong_sum(
    target: Target, layout: Layout, capfd: pytest.CaptureFixture[str]
) -> None:
    reason = reason_without(target)
    if reason is not None:
        pytest.skip(reason)
    # Two sums of one left operand, an extra that is added, two results; the last tiles reach over the edge.
    product = TiledProduct(
        layout, lambda sums, extras: (sums[0] + extras[0], sums[1]), (jnp.float32,) * 2
    )
    sizes = (200, 100, 100) if target is GPU else (24, 200, 200)
    left, right, exact = _operands(layout, *sizes)
    ones = jnp.ones(exact.shape, jnp.float32)
    if target is GPU:
        from jaxscale.kernels import tiled_gpu

        tiles = tiled_gpu.GpuTiles(m=64, n=64, k=64, stages=2)
        found = tiled_gpu.tiled_product(
            product, tiles, target, left, (right, 2 * right), (ones,), detect_races=True
        )
    else:
        from jaxscale.kernels import tiled_tpu

        found = tiled_tpu.tiled_product(
            product,
            Tiles(16, 128, 128),
            target,
            left,
            (right, 2 * right),
            (ones,),
            detect_races=True,
        )
    # fp32 sums of at most 200 products of numbers of about 1.
    np.testing.assert_allclose(found[0], exact + 1, atol=1e-4)
    np.testing.assert_allclose(found[1], 2 * exact, atol=2e-4)
    said = capfd.readouterr()
    assert "RACE DETECTED" not in said.out + said.err
