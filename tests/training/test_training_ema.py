"""The exponential moving average of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.training.ema import init_ema, update_ema


def test_weights_of_the_first_updates():
    """d_0 = 1/10, d_1 = 2/11: from 0 towards 1 the average is 0.9, then 0.9 + 9/11 * 0.1."""
    average = {"w": jnp.zeros(2)}
    params = {"w": jnp.ones(2)}
    average = update_ema(average, params, 0.999, 0)
    np.testing.assert_allclose(average["w"], 0.9, rtol=1e-6)
    average = update_ema(average, params, 0.999, 1)
    np.testing.assert_allclose(average["w"], 0.9 + 0.1 * 9 / 11, rtol=1e-6)


def test_late_updates_have_the_decay_itself():
    """(1 + t) / (10 + t) passes 0.99 at t = 890: 889 is still warm, 1e9 is not."""
    average, params = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    warm = update_ema(average, params, 0.99, 800)["w"]
    late = update_ema(average, params, 0.99, 10**9)["w"]
    np.testing.assert_allclose(warm, 1 - 801 / 810, rtol=1e-5)
    np.testing.assert_allclose(late, 0.01, rtol=1e-5)


def test_average_of_constant_parameters_is_the_parameters():
    params = {"w": jnp.asarray([0.1, -3.0], jnp.float32)}
    average = init_ema(params)
    for step in range(50):
        average = update_ema(average, params, 0.9, step)
    np.testing.assert_array_equal(average["w"], params["w"])


def test_bfloat16_parameters_are_averaged_in_fp32_under_jit():
    """An update by 0.001 is below half a step of bfloat16 at 1 (2^-9)."""
    params = {"w": jnp.asarray([1.0], jnp.bfloat16)}
    average = init_ema(params)
    moved = {"w": jnp.asarray([2.0], jnp.bfloat16)}
    average = jax.jit(update_ema)(average, moved, 0.999, jnp.int32(100_000))
    assert average["w"].dtype == jnp.float32
    np.testing.assert_allclose(average["w"], 1.001, rtol=1e-6)


def test_the_average_does_not_share_buffers_with_the_parameters():
    """The train step donates both."""
    params = {"w": jnp.ones(3)}
    average = init_ema(params)
    params["w"].delete()
    np.testing.assert_array_equal(average["w"], 1.0)
