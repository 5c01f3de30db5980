"""The four update rules against torch, optax and transcriptions of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optimizer_cases import (
    DEEP,
    EXPERTS,
    GPT2,
    LLAMA,
    NAMES,
    OWN,
    STEPS,
    normal,
    optimizer_for,
    rate_for,
    rates,
    train,
    unstack,
)

from jaxscale.config.optimizer_section import OptimizerSection
from jaxscale.training.muon import orthogonalize
from jaxscale.training.optimizer_axes import optimizer_state_specs
from jaxscale.training.parameter_kinds import hidden_matrix_shape, is_matrix

jitted_orthogonalize = jax.jit(orthogonalize)

# Does a parameter decay, and in what shape does Muon orthogonalize it (None: it is AdamW's)?
KINDS = [
    (LLAMA, "embedding/table", True, None),
    (LLAMA, "layers/attention_norm/scale", False, None),
    (LLAMA, "layers/attention/query", True, (2, 128, 260)),
    (LLAMA, "layers/attention/key", True, (2, 128, 8)),
    (LLAMA, "layers/attention/query_norm/scale", False, None),
    (LLAMA, "layers/attention/output", True, (2, 260, 128)),
    (LLAMA, "layers/mlp/gate", True, (2, 128, 144)),
    (LLAMA, "layers/mlp/down", True, (2, 16, 128)),
    (LLAMA, "final_norm/scale", False, None),
    (LLAMA, "head/kernel", True, None),
    (GPT2, "embedding/table", True, None),
    (GPT2, "position_embedding/table", True, None),
    (GPT2, "layers/attention_norm/scale", False, None),
    (GPT2, "layers/attention_norm/bias", False, None),
    (GPT2, "layers/attention/query", True, (2, 16, 16)),
    (GPT2, "layers/attention/query_bias", False, None),
    (GPT2, "layers/attention/output", True, (2, 16, 16)),
    (GPT2, "layers/attention/output_bias", False, None),
    (GPT2, "layers/mlp/up", True, (2, 16, 64)),
    (GPT2, "layers/mlp/up_bias", False, None),
    (GPT2, "final_norm/bias", False, None),
    (EXPERTS, "layers/router/kernel", True, (2, 16, 4)),
    (EXPERTS, "layers/router/bias", False, None),
    (EXPERTS, "layers/router/load", False, None),
    (EXPERTS, "layers/mlp/gate", True, (2, 4, 16, 8)),
    (EXPERTS, "layers/mlp/gate_bias", False, None),
    (EXPERTS, "layers/mlp/scale", False, None),
    (OWN, "encoder/conv", True, None),
    (OWN, "encoder/dense", True, (8, 6)),
    (OWN, "encoder/gain", False, None),
    (OWN, "encoder/fused", True, None),
    (OWN, "encoder/temperature", False, None),
    (OWN, "decoder/words", True, None),
    (OWN, "classifier/head/kernel", True, None),
]


def gradients(description, dtype="float32", steps=STEPS):
    return [normal(description, 100 + step, dtype) for step in range(steps)]


def assert_close(got, expected, tolerance):
    """Each parameter within `tolerance` of its own largest value."""
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        scale = max(float(np.max(np.abs(value))), 1e-3)
        np.testing.assert_allclose(got[path], value, rtol=0, atol=tolerance * scale, err_msg=path)


@pytest.mark.parametrize(
    ("description", "path", "decays", "muon"), KINDS, ids=[case[1] for case in KINDS]
)
def test_kind_of_parameter(description, path, decays, muon):
    assert is_matrix(path, description[path]) is decays
    assert hidden_matrix_shape(path, description[path]) == muon


def test_the_table_of_kinds_covers_every_description():
    covered = {(id(description), path) for description, path, _, _ in KINDS}
    assert len(covered) == len(KINDS) == sum(map(len, (LLAMA, GPT2, EXPERTS, OWN)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "description", [LLAMA, GPT2, EXPERTS, OWN], ids=["llama", "gpt2", "moe", "own"]
)
def test_without_gradient_matrices_shrink_and_vectors_stay(name, description):
    section = OptimizerSection(name=name, learning_rate=0.01, weight_decay=0.5)
    params = normal(description, 0)
    zero = [{path: np.zeros_like(value) for path, value in params.items()}] * 2
    got = train(optimizer_for(section, description), params, zero)
    kept = np.prod([1 - rate * 0.5 for rate in rates(section)[:2]])
    # Two fp32 products and sums of numbers below 64.
    assert_close(
        got,
        {p: v * (kept if is_matrix(p, description[p]) else 1) for p, v in params.items()},
        4 * np.finfo(np.float32).eps,
    )


# 20 updates of a dozen roundings each is 240 eps: 5e-14 in fp64, 3e-5 in fp32.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 3e-5)])
def test_adamw_is_torch_adamw(dtype, tolerance):
    torch = pytest.importorskip("torch")
    section = OptimizerSection(name="adamw", learning_rate=0.02, weight_decay=0.3, epsilon=1e-6)
    start, steps = normal(GPT2, 0, dtype), gradients(GPT2, dtype)
    theirs = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    kinds = {path: is_matrix(path, GPT2[path]) for path in GPT2}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for k, p in theirs.items() if kinds[k]], "weight_decay": 0.3},
            {"params": [p for k, p in theirs.items() if not kinds[k]], "weight_decay": 0.0},
        ],
        betas=(section.beta1, section.beta2),
        eps=1e-6,
    )
    for rate, gradient in zip(rates(section), steps, strict=True):
        for group in adamw.param_groups:
            group["lr"] = rate
        for path, value in theirs.items():
            value.grad = torch.tensor(gradient[path])
        adamw.step()
    with jax.enable_x64(dtype == "float64"):
        got = train(optimizer_for(section, GPT2), start, steps)
        assert all(value.dtype == dtype for value in got.values())
        assert_close(got, {p: v.detach().numpy() for p, v in theirs.items()}, tolerance)


def test_lion_is_algorithm_2_of_its_paper():
    """Chen et al. 2023, in float64: signs of sums that are not near zero are the same in both."""
    section = OptimizerSection(name="lion", learning_rate=0.01, weight_decay=0.3)
    expected, steps = normal(GPT2, 0, "float64"), gradients(GPT2, "float64")
    start = dict(expected)
    momentum = {path: np.zeros_like(value) for path, value in start.items()}
    for rate, gradient in zip(rates(section), steps, strict=True):
        for path, g in gradient.items():
            direction = np.sign(0.9 * momentum[path] + (1 - 0.9) * g)
            decay = 0.3 if is_matrix(path, GPT2[path]) else 0.0
            expected[path] = expected[path] - rate * (direction + decay * expected[path])
            momentum[path] = 0.99 * momentum[path] + (1 - 0.99) * g
    with jax.enable_x64(True):
        assert_close(train(optimizer_for(section, GPT2), start, steps), expected, 1e-13)


def newton_schulz(g):
    """`zeropower_via_newtonschulz5` of Jordan et al. 2024, in float64."""
    x = g / np.linalg.norm(g)
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_muon_is_its_paper_on_each_layer_and_leaves_the_rest_to_adamw():
    """Jordan et al. 2024 with the scale of Liu et al. 2025, equation 4."""
    section = OptimizerSection(
        name="muon", learning_rate=0.02, weight_decay=0.3, adam_learning_rate=0.005
    )
    start, steps = normal(GPT2, 0, "float64"), gradients(GPT2, "float64")
    adam = OptimizerSection(name="adamw", learning_rate=0.005, weight_decay=0.3)
    with jax.enable_x64(True):
        expected = dict(train(optimizer_for(adam, GPT2), start, steps))
    for path, entry in GPT2.items():
        shape = hidden_matrix_shape(path, entry)
        if shape is None:
            continue
        layers, buffer = start[path].reshape(shape).copy(), np.zeros(shape)
        for rate, gradient in zip(rates(section), steps, strict=True):
            g = gradient[path].reshape(shape)
            buffer = 0.95 * buffer + 0.05 * g
            for layer, u in enumerate(0.05 * g + 0.95 * buffer):
                step = 0.2 * np.sqrt(max(u.shape)) * newton_schulz(u)
                layers[layer] -= rate * (step + 0.3 * layers[layer])
        expected[path] = layers.reshape(entry.shape)
    with jax.enable_x64(True):
        got = train(optimizer_for(section, GPT2), start, steps)
    # Newton-Schulz multiplies roundings of small singular values by up to 3.4^5 = 480.
    assert_close(got, expected, 1e-11)


def test_muon_is_torch_muon_within_bfloat16():
    """torch iterates in bfloat16: five iterations of eps 2^-8 leave 2 percent of an update."""
    torch = pytest.importorskip("torch")
    section = OptimizerSection(name="muon", learning_rate=0.02, weight_decay=0.3)
    path, shape = "layers/mlp/up", (16, 64)
    start, steps = normal(GPT2, 0), gradients(GPT2)
    theirs = torch.nn.Parameter(torch.tensor(start[path][1]))
    muon = torch.optim.Muon([theirs], weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for rate, gradient in zip(rates(section), steps, strict=True):
        muon.param_groups[0]["lr"] = rate
        theirs.grad = torch.tensor(gradient[path][1])
        muon.step()
    got = train(optimizer_for(section, GPT2), start, steps)[path][1]
    moved = sum(rates(section)) * 0.2
    assert got.shape == shape
    assert np.sqrt(np.mean((got - theirs.detach().numpy()) ** 2)) < 0.03 * moved
    assert np.sqrt(np.mean((got - start[path][1]) ** 2)) > 0.1 * moved


@settings(deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([(1, 1), (1, 7), (5, 12), (12, 5), (12, 12)]),
    decades=st.floats(0, 2),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
def test_orthogonalized_matrices_have_singular_values_near_one_and_the_same_directions(
    shape, decades, scale, seed
):
    """The scalar iteration keeps [0.002, 1] in [0.68, 1.21]; here the least is 0.01 / sqrt(12)."""
    random, rank = np.random.default_rng(seed), min(shape)
    u, v = (np.linalg.qr(random.standard_normal((size, rank)))[0] for size in shape)
    matrix = scale * (u * 10 ** -np.linspace(0, decades, rank)) @ v.T
    with jax.enable_x64(True):
        inside = u.T @ np.asarray(jitted_orthogonalize(jnp.asarray(matrix))) @ v
    assert np.all((np.diag(inside) > 0.68) & (np.diag(inside) < 1.21))
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-9)


@pytest.mark.parametrize("description", [LLAMA, EXPERTS], ids=["llama", "moe"])
def test_adafactor_is_optax_adafactor_on_each_array_by_itself(description):
    section = OptimizerSection(name="adafactor", learning_rate=0.05, weight_decay=0.0)
    start, steps = normal(description, 0, "float64"), gradients(description, "float64")
    with jax.enable_x64(True):
        got = train(optimizer_for(section, description), start, steps)

        def alone(values):
            layers = unstack(values, description)
            if description is LLAMA:
                return layers
            return {  # Each expert too; a router's experts are its features.
                f"{path}.{expert}": value[expert]
                for path, value in layers.items()
                for expert in (range(4) if "/mlp/" in path else [...])
            }

        expected = train(
            optax.adafactor(rate_for(section)), alone(start), [alone(step) for step in steps]
        )
        # optax has the second moment's decay rate in fp32: 2^-24 of it in each update.
        assert_close(alone(got), expected, 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_of_layers_trains_as_its_layers_alone(name):
    section = OptimizerSection(name=name, learning_rate=0.02, weight_decay=0.3)
    description = LLAMA if name == "adafactor" else GPT2  # Where Adafactor factors.
    start = normal(description, 0, "float64")
    steps = gradients(description, "float64", steps=5)
    with jax.enable_x64(True):
        stacked = train(optimizer_for(section, description), start, steps)
        alone = train(
            optimizer_for(section, unstack(description, description)),
            unstack(start, description),
            [unstack(step, description) for step in steps],
        )
        # Sums in another order: fp64 rounding only, which Muon multiplies by up to 480.
        assert_close(unstack(stacked, description), alone, 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_state_and_updates_are_fp32_for_bfloat16_parameters(name):
    optimizer = optimizer_for(OptimizerSection(name=name), LLAMA)
    params = {p: jnp.asarray(v, jnp.bfloat16) for p, v in normal(LLAMA, 0).items()}
    state = jax.jit(optimizer.init)(params)
    updates, after = jax.jit(optimizer.update)(params, state, params)
    for leaf in jax.tree.leaves((state, updates, after)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(
        lambda leaf: leaf.dtype, after
    )


def test_adafactor_never_factors_over_layers():
    """(128, 4) is too small to factor, however many of them there are."""
    optimizer = optimizer_for(OptimizerSection(name="adafactor"), DEEP)
    state = optimizer_state_specs(optimizer, DEEP)["adafactor"]
    assert state.row == state.column == {}
    assert state.full["layers/gate"].shape == (130, 128, 4)


def test_small_bfloat16_gradients_are_not_lost_in_the_second_moment():
    """A step adds 0.1 % of the difference: less than bfloat16 resolves (2^-8)."""
    section = OptimizerSection(name="adamw", beta2=0.999, weight_decay=0.0, beta1=0.0)
    optimizer = optimizer_for(section, {"w": LLAMA["final_norm/scale"]})
    params = {"w": jnp.zeros(128, jnp.bfloat16)}
    state = optimizer.init(params)
    for size in [1.0] + [2.0] * 10:
        _, state = optimizer.update({"w": jnp.full(128, size, jnp.bfloat16)}, state, params)
    expected = 0.001 * 0.999**10 + 4 * (1 - 0.999**10)
    np.testing.assert_allclose(state["adam"].nu["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_sharded_training_is_the_same_and_keeps_its_placement(name):
    """Placed by the inherited axes: fsdp on `embed`, tensor on `heads` and `mlp`, layers whole."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    table = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}
    section = OptimizerSection(name=name, learning_rate=0.02, weight_decay=0.3)
    optimizer = optimizer_for(section, LLAMA)

    def placed(axes):
        return NamedSharding(mesh, PartitionSpec(*(table.get(axis) for axis in axes)))

    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    by_path = {path: placed(entry.axes) for path, entry in LLAMA.items()}
    of_state = jax.tree.map(
        lambda entry: placed(entry.axes),
        optimizer_state_specs(optimizer, LLAMA),
        is_leaf=lambda leaf: hasattr(leaf, "axes"),
    )
    params = jax.device_put(normal(LLAMA, 0), by_path)
    state = jax.jit(optimizer.init, out_shardings=of_state)(params)
    jitted = jax.jit(step, out_shardings=(by_path, of_state))
    for gradient in gradients(LLAMA, steps=2):
        params, state = jitted(params, state, jax.device_put(gradient, by_path))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == of_state
    expected = train(optimizer, normal(LLAMA, 0), gradients(LLAMA, steps=2))
    # fp32 sums of 260 terms in another order; Muon multiplies roundings (6e-8) by up to 480.
    assert_close(params, expected, 2e-5)
