"""Which attention runs where, and the reasons given."""

import jax
import jax.numpy as jnp
import pytest

from jaxscale.kernels.attention.api import choose
from jaxscale.kernels.attention.form import Form


def _array(length: int = 64, head_dim: int = 64, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, length, 4, head_dim), jnp.dtype(dtype))


@pytest.mark.parametrize("window", [None, 16])
def test_a_gpu_takes_cudnn_where_it_can(window: int | None) -> None:
    choice = choose(_array(), _array(), Form(scale=1.0, window=window), platform="gpu")
    assert choice.name == "cudnn"
    assert not choice.declined


@pytest.mark.parametrize(
    ("query", "form", "packed", "reason"),
    [
        (_array(dtype="float32"), Form(scale=1.0), False, "not float32"),
        (_array(head_dim=256), Form(scale=1.0), False, "head dimension 256"),
        (_array(head_dim=60), Form(scale=1.0), False, "head dimension 60"),
        (_array(), Form(scale=1.0, softcap=30.0), False, "soft-cap"),
        (_array(), Form(scale=1.0), True, "documents"),
        (_array(length=32), Form(scale=1.0, query_offset=32), False, "not 32 and 64"),
    ],
)
def test_cudnn_declines_with_the_reason(
    query: jax.ShapeDtypeStruct, form: Form, packed: object, reason: str
) -> None:
    key = _array(head_dim=query.shape[-1], dtype=query.dtype.name)
    choice = choose(query, key, form, packed=bool(packed), platform="gpu")
    assert choice.name == "xla"
    assert reason in choice.declined["cudnn"]
    assert reason in str(choice)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_platforms_take_blocks_without_asking_cudnn(platform: str) -> None:
    choice = choose(_array(), _array(), Form(scale=1.0), platform=platform)
    assert str(choice) == "xla"


def test_the_platform_is_the_default_backend_unless_named() -> None:
    assert choose(_array(), _array(), Form(scale=1.0)).name == "xla"  # The tests run on CPU.
