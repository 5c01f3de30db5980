"""Which attention runs where, and the reasons given."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxscale.errors import UserError
from jaxscale.kernels.attention.api import attention, choose_kernel
from jaxscale.kernels.attention.call import AttentionCall, call_of
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.target import Target

GPU, TPU, CPU = Target("gpu", "NVIDIA H200"), Target("tpu", "TPU v5"), Target("cpu", "cpu")
PLAIN = Form(scale=1.0)
CALL = AttentionCall("bfloat16", 2, 256, 256, 4, 4, 64, PLAIN)


@pytest.mark.parametrize("window", [None, 16])
def test_a_gpu_takes_cudnn_where_it_can(window: int | None) -> None:
    choice, target = choose_kernel(replace(CALL, form=Form(scale=1.0, window=window)), GPU)
    assert (choice.name, target) == ("cudnn", GPU)
    assert list(choice.declined) == ["pallas_splash"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (replace(CALL, dtype="float32"), "not float32"),
        (replace(CALL, head_dim=256), "head dimension 256"),
        (replace(CALL, head_dim=60), "head dimension 60"),
        (replace(CALL, form=Form(scale=1.0, softcap=30.0)), "soft-cap"),
        (replace(CALL, documents="shared"), "documents"),
        (replace(CALL, queries=128), "not 128 and 256"),
    ],
)
def test_cudnn_declines_with_the_reason(call: AttentionCall, reason: str) -> None:
    choice, _ = choose_kernel(call, GPU)
    assert choice.name == "xla"
    assert reason in choice.declined["cudnn"]
    assert reason in str(choice)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (replace(CALL, dtype="float16"), "not float16"),
        (replace(CALL, queries=200), "200 queries are not a multiple of 128"),
        (replace(CALL, keys=300), "300 keys are not a multiple of 128"),
        (replace(CALL, documents="apart"), "would not get zeros"),
    ],
)
def test_splash_declines_with_the_reason(call: AttentionCall, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        choose_kernel(call, TPU, "pallas")
    assert choose_kernel(call, TPU)[0].name == "xla"


def test_splash_is_taken_when_asked_for_and_by_itself_only_where_it_was_measured() -> None:
    assert choose_kernel(CALL, TPU, "pallas")[0].name == "pallas_splash"
    choice, _ = choose_kernel(CALL, TPU)
    assert choice.name == "xla"
    assert "not measured on TPU v5" in choice.declined["pallas_splash"]


def test_a_cpu_takes_blocks_and_interprets_only_when_asked_to() -> None:
    assert choose_kernel(CALL, CPU)[0].name == "xla"
    choice, target = choose_kernel(CALL, CPU, "interpret_tpu")
    assert (choice.name, target.platform, target.interpreted) == ("pallas_splash", "tpu", True)


def test_the_target_is_this_process_unless_named() -> None:
    query = jnp.ones((1, 4, 2, 8))  # The tests run on CPU.
    with pytest.raises(UserError, match="it needs an NVIDIA GPU, and this is cpu"):
        attention(query, query, query, scale=1.0, implementation="cudnn")


def test_the_call_is_read_off_the_arrays() -> None:
    query, key = (jax.ShapeDtypeStruct((2, n, h, 8), jnp.float32) for n, h in ((4, 6), (5, 3)))
    ids = jnp.zeros((2, 4), int)
    call = call_of(query, key, Form(scale=1.0, window=3, softcap=2.0), (ids, None))
    assert call.layout == "window_softcap_documents"
    assert call.sizes == {"b": 2, "q": 4, "k": 5, "h": 6, "g": 3, "d": 8, "w": 3}
    assert call_of(query, key, PLAIN, (ids, ids)).documents == "apart"
    assert call_of(query, key, PLAIN).layout == "causal"
