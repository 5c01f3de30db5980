"""Axes and names of optimizer states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import GPT2, LLAMA, NAMES, normal, optimizer_for, spec

from jaxscale.config.optimizer_section import OptimizerSection
from jaxscale.models.description import ParamSpec
from jaxscale.training.optimizer_axes import optimizer_state_specs
from jaxscale.training.optimizer_state import flatten_state, unflatten_state

SMALL = {
    "layers/attention/query": spec((3, 128, 2, 130), "layers", "embed", "heads", "head_dim"),
    "layers/norm/scale": spec((3, 128), "layers", "norm"),
}
QUERY, SCALE = SMALL["layers/attention/query"].axes, SMALL["layers/norm/scale"].axes
GOLDEN = {
    "adamw": {
        "optimizer/adam/count": (),
        "optimizer/adam/mu/layers/attention/query": QUERY,
        "optimizer/adam/mu/layers/norm/scale": SCALE,
        "optimizer/adam/nu/layers/attention/query": QUERY,
        "optimizer/adam/nu/layers/norm/scale": SCALE,
        "optimizer/schedule/count": (),
    },
    "adafactor": {
        "optimizer/adafactor/step": (),
        "optimizer/adafactor/row/layers/attention/query": ("layers", "embed", "heads"),
        "optimizer/adafactor/column/layers/attention/query": ("layers", "heads", "head_dim"),
        "optimizer/adafactor/full/layers/norm/scale": SCALE,
        "optimizer/schedule/count": (),
    },
    "lion": {
        "optimizer/lion/count": (),
        "optimizer/lion/mu/layers/attention/query": QUERY,
        "optimizer/lion/mu/layers/norm/scale": SCALE,
        "optimizer/schedule/count": (),
    },
    "muon": {
        "optimizer/hidden/momentum/trace/layers/attention/query": QUERY,
        "optimizer/hidden/schedule/count": (),
        "optimizer/others/adam/count": (),
        "optimizer/others/adam/mu/layers/norm/scale": SCALE,
        "optimizer/others/adam/nu/layers/norm/scale": SCALE,
        "optimizer/others/schedule/count": (),
    },
}


def arrays(description):
    return {path: jnp.asarray(value) for path, value in normal(description, 0).items()}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_axes_of_the_state(name):
    """Names are in checkpoints: a change here breaks those that exist."""
    specs = optimizer_state_specs(optimizer_for(OptimizerSection(name=name), SMALL), SMALL)
    assert {path: leaf.axes for path, leaf in flatten_state({"optimizer": specs}).items()} == (
        GOLDEN[name]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("description", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_specs_have_structure_shapes_and_dtypes_of_the_state(name, description):
    optimizer = optimizer_for(OptimizerSection(name=name), description)
    specs = optimizer_state_specs(optimizer, description)
    state = optimizer.init(arrays(description))
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), specs) == described
    assert all(len(leaf.axes) == len(leaf.shape) for leaf in jax.tree.leaves(specs))


def test_means_over_a_square_matrix_have_the_axes_of_the_dims_they_keep():
    """Shapes cannot tell rows from columns here; a gradient in a single `embed` row can."""
    square = {"w": spec((128, 128), "embed", "mlp")}
    optimizer = optimizer_for(OptimizerSection(name="adafactor"), square)
    gradient = {"w": jnp.zeros((128, 128)).at[5].set(1.0)}
    params = {"w": jnp.ones((128, 128))}
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    axes = flatten_state(optimizer_state_specs(optimizer, square))
    for name, moment in flatten_state(state).items():
        if name.endswith("/w"):
            one_hot = np.count_nonzero(np.asarray(moment) > 1e-20) == 1
            assert axes[name].axes == (("embed",) if one_hot else ("mlp",))


def test_state_that_no_parameter_explains_is_refused():
    params = {"w": spec((4, 6), "embed", "mlp")}
    with pytest.raises(AssertionError, match=r"ns_coeffs.*names no parameter"):
        optimizer_state_specs(optax.contrib.scale_by_muon(), params)
    with pytest.raises(AssertionError, match=r"v_row.*shape \(1,\) where 'w' has \(4, 6\)"):
        optimizer_state_specs(optax.scale_by_factored_rms(), params)


def foreign():
    """Optimizers of other people: every kind of wrapper that optax has."""
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    mask = {path: path.endswith("query") for path in SMALL}
    labels = {path: "a" if chosen else "b" for path, chosen in mask.items()}
    return {
        "chain": optax.chain(optax.clip(1.0), optax.adamw(schedule, mask=mask)),
        "inject": optax.inject_hyperparams(optax.adam)(learning_rate=schedule),
        "masked": optax.masked(optax.sgd(0.1, momentum=0.9), mask),
        "multi": optax.multi_transform({"a": optax.adam(0.1), "b": optax.lion(schedule)}, labels),
        "multi_steps": optax.MultiSteps(optax.adam(0.1), 4),
        "muon": optax.contrib.muon(0.1),
    }


@pytest.mark.parametrize("name", [*NAMES, *foreign()])
def test_states_survive_the_way_through_flat_names(name):
    optimizer = (
        optimizer_for(OptimizerSection(name=name), SMALL) if name in GOLDEN else None
    ) or foreign()[name]
    state = optimizer.init(arrays(SMALL))
    flat = flatten_state({"optimizer": state})
    numbered = {path: number for number, path in enumerate(flat)}
    assert len(flat) == len(jax.tree.leaves(state))
    restored = unflatten_state({"optimizer": state}, dict(reversed(numbered.items())))
    assert jax.tree.structure(restored["optimizer"]) == jax.tree.structure(state)
    assert jax.tree.leaves(restored) == list(range(len(flat)))


def test_positions_appear_only_where_names_would_be_equal():
    adam = optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(1.0)))
    flat = flatten_state(adam.init({"w": jnp.zeros(3)}))
    # The second of the chain is adam, itself a chain of moments and schedule, each with a count.
    assert set(flat) == {"1/0/count", "1/1/count", "mu/w", "nu/w"}


def test_a_state_of_other_names_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"1 missing \['mu/b'\], 1 unknown \['mu/c'\]"):
        unflatten_state({"mu": {"a": 1, "b": 2}}, {"mu/a": 1, "mu/c": 3})


def test_specs_are_leaves_of_the_spec_tree():
    specs = optimizer_state_specs(optimizer_for(OptimizerSection(), SMALL), SMALL)
    assert all(isinstance(leaf, ParamSpec) for leaf in jax.tree.leaves(specs))
