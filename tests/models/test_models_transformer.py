"""What the transformer promises whatever its family: documents, dtypes, hooks, initialization."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import CASES, SEQUENCE, make_blueprint, random_params, random_tokens, section

from jaxscale.errors import UserError
from jaxscale.models.build import model_builder
from jaxscale.models.context import ForwardContext, use_forward_context
from jaxscale.models.description import bind, blueprint, init_params
from jaxscale.models.language_model import LanguageModel
from jaxscale.models.layers import CHECKPOINT_NAMES
from jaxscale.models.transformer import ACTIVATION_AXES, default_positions

ONE_OF_EACH = [
    "gpt2",
    "llama3.1, stretched",
    "qwen3",
    "gemma2, odd layers",
    "gemma3, pattern of three",
]


def _logits(model: Any, params: Any, *args: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda p, a: bind(model, p)(*a))(params, args))


@pytest.mark.parametrize("name", CASES)
def test_packed_documents_get_the_logits_of_each_alone(name: str) -> None:
    model = make_blueprint(name)
    params, tokens = random_params(model), random_tokens()
    first = 9
    segments = np.where(np.arange(SEQUENCE) < first, 1, 2)[None].repeat(2, axis=0)

    packed = _logits(model, params, tokens, None, segments)

    alone = [_logits(model, params, tokens[:, s]) for s in (slice(0, first), slice(first, None))]
    # The same fp32 products, masked instead of absent: rounding only.
    np.testing.assert_allclose(
        packed, np.concatenate(alone, axis=1), rtol=0, atol=1e-5 * np.abs(packed).max()
    )


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_later_tokens_do_not_reach_earlier_logits(name: str) -> None:
    model = make_blueprint(name)
    params, tokens = random_params(model), random_tokens()
    changed = tokens.copy()
    changed[:, 12:] = (changed[:, 12:] + 1) % 61

    before, after = _logits(model, params, tokens), _logits(model, params, changed)

    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert not np.array_equal(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_half_precision_parameters_compute_in_their_dtype_and_stay_close(name: str) -> None:
    model = make_blueprint(name)
    params, tokens = random_params(model), random_tokens()
    half = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    wide = {path: value.astype(jnp.float32) for path, value in half.items()}

    @jax.jit
    def logits_and_gradients(params: Any) -> Any:
        def loss(params: Any) -> Any:
            module = bind(model, params)
            hidden = module.hidden(tokens)
            assert hidden.dtype == params["embedding/table"].dtype
            logits = module.logits(hidden)
            return logits.var(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradients

    (logits, gradients), (expected, _) = logits_and_gradients(half), logits_and_gradients(wide)

    assert {value.dtype for value in gradients.values()} == {jnp.dtype(jnp.bfloat16)}
    assert all(bool(jnp.isfinite(value).all()) for value in gradients.values())
    # bf16 rounds at 2^-9; some 10 roundings a block add up as a random walk, at most 8 blocks: 9 x 2^-9 typically.
    assert float(jnp.std(logits - expected) / jnp.std(expected)) < 0.04


def test_positions_restart_with_each_segment() -> None:
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [4, 4, 7, 7, 7, 7, 7]])
    assert default_positions(7, segments).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4]]
    assert default_positions(3, None).tolist() == [[0, 1, 2]]


def test_rotary_models_see_distances_and_learned_positions_see_places() -> None:
    moved = np.arange(SEQUENCE)[None] + 5
    for name, same in (("llama3, grouped", True), ("gpt2", False)):
        model = make_blueprint(name)
        params, tokens = random_params(model), random_tokens()
        here, there = _logits(model, params, tokens), _logits(model, params, tokens, moved)
        # Angles of positions up to 28 are rounded at 2e-6 in fp32.
        assert np.allclose(here, there, rtol=0, atol=2e-5 * np.abs(here).max()) is same


def test_a_sequence_beyond_the_learned_positions_is_refused() -> None:
    model = make_blueprint("gpt2")
    with pytest.raises(UserError, match=r"49 tokens.*learned 48 positions"):
        bind(model, random_params(model)).hidden(np.zeros((1, 49), np.int32))


def test_a_token_outside_the_vocabulary_makes_its_row_nan_and_no_other() -> None:
    model = make_blueprint("llama3, grouped")
    tokens = random_tokens()
    tokens[0, 5] = 61
    logits = _logits(model, random_params(model), tokens)
    assert np.isnan(logits[0, 5:]).all()
    assert np.isfinite(logits[1]).all()


@pytest.mark.parametrize("name", ["llama3, grouped", "gemma3, pattern of three"])
def test_unrolling_and_rematerialization_do_not_change_loss_or_gradients(name: str) -> None:
    model = make_blueprint(name)
    params, tokens = random_params(model), random_tokens()

    def run(context: ForwardContext) -> Any:
        def loss(params: Any) -> jax.Array:
            with use_forward_context(context):
                return jnp.var(bind(model, params)(tokens))

        return jax.jit(jax.value_and_grad(loss))(params)

    plain = run(ForwardContext())
    policy = jax.checkpoint_policies.save_only_these_names("query", "mlp_out")
    contexts = (
        ForwardContext(layer_unroll=2),
        ForwardContext(wrap_block=lambda block: jax.checkpoint(block, policy=policy)),
    )
    for context in contexts:
        # Fused differently: fp32 rounding, relative to the largest element of each gradient.
        for ours, expected in zip(
            jax.tree.leaves(run(context)), jax.tree.leaves(plain), strict=True
        ):
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * scale)


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        leaves = jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr"))
        for leaf in leaves:
            if hasattr(leaf, "jaxpr"):
                yield from _equations(leaf.jaxpr)


@pytest.mark.parametrize("name", ["gpt2", "llama3, grouped", "gemma2, odd layers"])
def test_every_checkpoint_name_is_used_once_a_block(name: str) -> None:
    model = make_blueprint(name)
    trace = jax.make_jaxpr(lambda p: bind(model, p)(random_tokens()))(random_params(model))
    names = Counter(
        equation.params["name"]
        for equation in _equations(trace.jaxpr)
        if equation.primitive.name == "name"
    )
    gated = name != "gpt2"
    del names["attention_residual"]  # The kernel's own; its test is that of the policies.
    assert set(names) == set(CHECKPOINT_NAMES) - (set() if gated else {"mlp_gate"})
    # Traced copies of the block: one scanned; Gemma 2 with five layers has a pair scanned and one after it.
    assert set(names.values()) == {3 if name.startswith("gemma2") else 1}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_activations_are_placed_by_known_names_only(name: str) -> None:
    model = make_blueprint(name)
    seen = set()

    def record(array: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        seen.update(axes)
        return array

    with use_forward_context(ForwardContext(constrain=record)):
        jax.eval_shape(lambda p: bind(model, p)(random_tokens()), random_params(model))
    assert seen == set(ACTIVATION_AXES)


def test_attention_runs_as_the_surroundings_choose() -> None:
    model = make_blueprint("llama3, grouped")
    params = random_params(model)
    with (
        use_forward_context(ForwardContext(kernels={"attention": "abacus"})),
        pytest.raises(UserError, match="abacus"),
    ):
        jax.eval_shape(lambda p: bind(model, p)(random_tokens()), params)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_transformers_are_language_models_whose_logits_follow_from_hidden_and_table(
    name: str,
) -> None:
    model = make_blueprint(name)

    @jax.jit
    def both(params: Any) -> Any:
        module: Any = bind(model, params)
        assert isinstance(module, LanguageModel)
        plain = module.hidden(random_tokens()) @ module.output_table().T
        cap = module.logit_softcap
        return module(random_tokens()), plain if cap is None else cap * jnp.tanh(plain / cap)

    logits, expected = both(random_params(model))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(jnp.abs(logits).max()))


def test_initialization_is_that_of_the_papers() -> None:
    sizes: dict[str, Any] = {"vocab_size": 500, "embed_dim": 64, "num_heads": 4, "num_layers": 8}
    model = blueprint(model_builder(section("gpt2", **sizes)))
    params = init_params(model, jax.random.key(0))
    residual = {"layers/attention/output", "layers/mlp/down"}
    for path, value in params.items():
        if path.endswith("scale"):
            assert bool((value == 1).all())
        elif path.endswith("bias"):
            assert bool((value == 0).all())
        else:
            deviation = 0.02 / np.sqrt(2 * 8) if path in residual else 0.02
            # The sample deviation of n normal draws is off by 1 / sqrt(2 n), n at least 48 x 64: 1.3 %; four of those.
            assert float(value.std()) == pytest.approx(deviation, rel=0.052), path
            assert abs(float(value.mean())) < 4 * deviation / np.sqrt(value.size)


def test_layers_start_different_from_each_other_and_scales_of_gemma_at_zero() -> None:
    model = make_blueprint("gemma2, odd layers")
    params = init_params(model, jax.random.key(0))
    up = params["layers/mlp/up"]
    assert len({float(layer.sum()) for layer in up}) == len(up)
    assert all(bool((v == 0).all()) for path, v in params.items() if path.endswith("scale"))
    assert model.description["layers/mlp_norm/scale"].init == "zeros"
    assert model.description["layers/mlp/up"].init == "normal(0.02)"


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "qwen3", "gemma2, odd layers"])
def test_every_dim_has_the_size_that_its_axis_names(name: str) -> None:
    # Sizes all differ, so that no axis can stand in for another.
    sizes = {"embed_dim": 24, "num_heads": 6, "head_dim": 10, "num_layers": 3, "mlp_dim": 28}
    kv_heads = 6 if name == "gpt2" else 2
    chosen = section(name, **sizes, num_kv_heads=kv_heads)
    named = {"vocab": 61, "embed": 24, "norm": 24, "heads": 6, "kv_heads": kv_heads}
    named |= {"head_dim": 10, "mlp": 28, "layers": 3, None: 48}

    for path, spec in blueprint(model_builder(chosen)).description.items():
        assert spec.shape == tuple(named[axis] for axis in spec.axes), path
        assert (spec.axes[0] == "layers") is path.startswith("layers/"), path
        assert spec.dtype == np.float32
