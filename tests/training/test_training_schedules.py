"""Learning rates at points where their value is known, and the sections that describe them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jaxscale.config.optimizer_section import OptimizerSection, ScheduleSection
from jaxscale.errors import UserError
from jaxscale.training.schedules import learning_rate

EPS = float(np.finfo(np.float32).eps)
# Rates of 110 steps, 10 of them warmup, with peak 1 and final 0.2; wsd decays over the last 55.
# Update number t = step + 1 counts, so half of the decay is at t = 60 and a quarter at t = 35.
POINTS = [
    ("cosine", 59, 0.6),
    ("cosine", 34, 0.2 + 0.8 * (1 + 0.5**0.5) / 2),
    ("linear", 59, 0.6),
    ("linear", 34, 0.8),
    ("wsd", 34, 1.0),
    ("wsd", 54, 1.0),
    ("wsd", 65, 1.0 - 0.8 * 11 / 55),
    ("constant", 59, 1.0),
]


def rate(section, step, steps=110, peak=1.0):
    return float(learning_rate(section, peak=peak, steps=steps)(step))


def section(name, **fields):
    values = {"warmup_steps": 10, "final_fraction": 0.2, "decay_fraction": 0.5, **fields}
    return ScheduleSection(name=name, **values)


@pytest.mark.parametrize(("name", "step", "expected"), POINTS)
def test_value_between_the_ends(name, step, expected):
    assert rate(section(name), step) == pytest.approx(expected, abs=4 * EPS)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_ends_are_exact(name):
    """To fp32 rounding: the first update moves, the peak is reached, the end is the final rate."""
    peak = 3e-4
    values = [rate(section(name), step, peak=peak) for step in (0, 4, 9, 109, 10_000)]
    final = peak if name == "constant" else peak * 0.2
    expected = [peak * 0.1, peak * 0.5, peak, final, final]
    np.testing.assert_allclose(values, expected, rtol=EPS)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_without_warmup_the_run_starts_near_the_peak(name):
    assert rate(section(name, warmup_steps=0), 0) == pytest.approx(1.0, abs=0.8 / 110 + EPS)


@pytest.mark.parametrize(("name", "expected"), [("cosine", 0.2), ("wsd", 0.2), ("constant", 1.0)])
def test_a_run_of_one_step_has_the_rate_of_the_last(name, expected):
    assert rate(section(name, warmup_steps=0), 0, steps=1) == pytest.approx(expected, abs=EPS)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 299),
    final=st.floats(0, 1),
    decay=st.floats(0.01, 1),
)
def test_rates_rise_then_fall_and_stay_within_bounds(name, steps, warmup, final, decay):
    assume(warmup < steps and warmup + max(round(decay * steps), 1) <= steps)
    chosen = ScheduleSection(
        name=name, warmup_steps=warmup, final_fraction=final, decay_fraction=decay
    )
    schedule = learning_rate(chosen, peak=2.0, steps=steps)
    values = np.asarray(schedule(np.arange(300)), np.float64)[:steps]
    assert np.all(values[:warmup] > 0)
    assert np.all(np.diff(values[: max(warmup, 1)]) > 0)
    assert np.all(np.diff(values[max(warmup - 1, 0) :]) <= 4 * EPS)
    assert values.max() <= 2.0
    assert values[-1] == pytest.approx(2.0 if name == "constant" else 2.0 * final, abs=4 * EPS)


def test_rate_is_the_same_traced_and_not():
    schedule = learning_rate(section("cosine"), peak=0.1, steps=110)
    eager = [float(schedule(step)) for step in range(0, 110, 7)]
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(0, 110, 7))
    # XLA may fuse the cosine's argument: a rounding of it, and of the value.
    np.testing.assert_allclose(traced, eager, atol=0.1 * 4 * EPS)
    assert traced.dtype == jnp.float32


def test_warmup_longer_than_the_run_is_refused_with_the_numbers():
    with pytest.raises(UserError, match=r"20 warmup steps .* run of 20 steps; .* at most 19"):
        learning_rate(section("cosine", warmup_steps=20), peak=1.0, steps=20)


def test_decay_that_does_not_fit_is_refused_with_what_fits():
    with pytest.raises(UserError, match=r"10 warmup steps and 16 decay .*\(0.8 .* 20 steps.* 0.5"):
        learning_rate(section("wsd", decay_fraction=0.8), peak=1.0, steps=20)
    assert rate(section("wsd", decay_fraction=0.5), 9, steps=20) == 1.0


def test_lion_forgets_more_slowly_by_default():
    assert OptimizerSection(name="lion").beta2 == 0.99
    assert OptimizerSection(name="lion", beta2=0.95).beta2 == 0.95
    assert OptimizerSection(name="adamw").beta2 == 0.95


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_sections_survive_a_dump(name):
    chosen = OptimizerSection(name=name)
    assert OptimizerSection.model_validate(chosen.model_dump()) == chosen


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("adamw", "momentum"),
        ("adamw", "adam_learning_rate"),
        ("lion", "epsilon"),
        ("adafactor", "beta1"),
        ("adafactor", "beta2"),
    ],
)
def test_a_field_that_the_optimizer_does_not_read_is_refused(name, field):
    with pytest.raises(ValidationError, match=rf"'{name}' does not read {field}"):
        OptimizerSection(name=name, **{field: 0.5})


@pytest.mark.parametrize(
    "fields", [{"learning_rate": 0.0}, {"weight_decay": -0.1}, {"beta1": 1.0}, {"lr": 0.1}]
)
def test_values_out_of_range_and_unknown_keys_are_refused(fields):
    with pytest.raises(ValidationError):
        OptimizerSection(**fields)


@pytest.mark.parametrize("fields", [{"warmup_steps": -1}, {"final_fraction": 1.5}, {"warmup": 3}])
def test_schedule_values_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        ScheduleSection(**fields)
