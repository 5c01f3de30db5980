"""Blocked attention as the compiler for TPU lays it out."""

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxscale.kernels.attention.api import attention
from jaxscale.kernels.target import target_of

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 1024, 32, 4, 64


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_backward_pass_holds_the_scores_of_one_block() -> None:
    """Of 8 blocks in turn; of all at a time it would hold 0.9 of the scores of the triangle, as it did."""
    from jaxscale.hardware.by_name import cluster_by_name
    from jaxscale.parallel.topology import abstract_devices, prepare_process

    prepare_process()
    device = abstract_devices(cluster_by_name("v5e:2x2"))[0]
    here = jax.sharding.SingleDeviceSharding(device)
    query, key = (
        jax.ShapeDtypeStruct((4, LENGTH, heads, HEAD_DIM), jnp.bfloat16, sharding=here)
        for heads in (HEADS, KV_HEADS)
    )

    def layer(query: Any, key: Any, value: Any, cotangent: Any) -> Any:
        def call(*arrays: Any) -> Any:
            return attention(*arrays, scale=0.125, local=True, target=target_of([device]))

        out, pull = jax.vjp(call, query, key, value)
        return out, pull(cotangent)

    memory = jax.jit(layer).lower(query, key, key, query).compile().memory_analysis()
    assert memory is not None
    triangle = 4 * 4 * HEADS * LENGTH * LENGTH / 2
    assert memory.temp_size_in_bytes < 0.5 * triangle
