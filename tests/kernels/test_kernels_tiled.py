"""Tiled kernels under the interpreters' race detectors, at two tiles along every dim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.kernels.pallas import pl
from jaxscale.kernels.target import Target, reason_without
from jaxscale.kernels.tiles import Layout, TiledProduct, Tiles
from jaxscale.kernels.tpu_blocks import vector_memory

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


# Blocks of operands and results, the fp32 sums, and the least vector memory with which the compiler for v5p takes the
# kernel (JAX 0.10.2, to 2 MiB).
MEASURED = {
    "product": ([((1024, 512), 2), ((512, 1024), 2), ((1024, 1024), 2)], 1024 * 1024, 13),
    "product in fp32": ([((1024, 512), 4), ((512, 1024), 4), ((1024, 1024), 4)], 1024 * 1024, 30),
    "gradient of gated": (
        [((1024, 512), 2), ((512, 512), 2), *[((1024, 512), 2)] * 5],
        1024 * 512,
        22,
    ),
    "loss": (
        [((512, 512), 2), ((2048, 512), 2), *[((512, 1), 4)] * 5, ((512, 2048), 4)],
        512 * 2048,
        30,
    ),
    "ragged in fp32": ([((512, 1024), 4), ((1, 1024, 1024), 4), ((512, 1024), 4)], 512 * 1024, 28),
}


@pytest.mark.parametrize("kernel", MEASURED)
def test_a_kernel_asks_for_what_it_needs_and_leaves_the_rest_to_xla(kernel: str) -> None:
    shapes, sums, least = MEASURED[kernel]
    blocks = [
        (pl.BlockSpec(shape, None), jax.ShapeDtypeStruct(shape, f"float{8 * size}"))
        for shape, size in shapes
    ]
    asked = vector_memory(blocks, 4 * sums)
    assert least <= asked / 2**20 < 48  # Of the 64 MiB of a v5p.
