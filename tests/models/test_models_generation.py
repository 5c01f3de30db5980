"""Decoding with a cache says what the full forward pass says; sampling keeps what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import CASES, VOCAB, architecture, make_blueprint, random_params, random_tokens

from jaxscale.errors import UserError
from jaxscale.models.cache import empty_cache
from jaxscale.models.description import bind
from jaxscale.models.generation import DONE, generate, make_decoder, stream
from jaxscale.models.sampling import Sampling, sample

PROMPTS = [[5, 17, 3, 44, 8, 21, 9], [12], [30, 2, 2, 19]]


@pytest.mark.parametrize("name", CASES)
def test_cached_decoding_gives_the_logits_of_the_full_pass(name: str) -> None:
    arch, model = architecture(name), make_blueprint(name)
    params, tokens, prompt = random_params(model), random_tokens(), 9

    @jax.jit
    def extend(params, tokens, positions, cache):
        module = bind(model, params)
        hidden, cache = module.extend(tokens, positions, cache)
        return module.logits(hidden), cache

    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    cache = empty_cache(arch, batch=2, length=tokens.shape[1], dtype=jnp.float32)
    pieces = [slice(0, prompt), *(slice(i, i + 1) for i in range(prompt, tokens.shape[1]))]
    logits = []
    for piece in pieces:
        new, cache = extend(params, tokens[:, piece], positions[:, piece], cache)
        logits.append(new)

    full = np.asarray(jax.jit(lambda p, t: bind(model, p)(t))(params, tokens))
    # Same products in another order: fp32 rounding of a few 1e-7 each, grown over at most 8 layers.
    np.testing.assert_allclose(
        np.concatenate(logits, axis=1), full, rtol=0, atol=1e-5 * np.abs(full).max()
    )


@pytest.mark.parametrize("name", ["gpt2", "llama3, grouped", "gemma3, pattern of three"])
def test_greedy_text_is_the_argmax_of_the_full_pass_for_prompts_of_any_length(name: str) -> None:
    model = make_blueprint(name)
    params = random_params(model)
    forward = jax.jit(bind(model, params).__call__)

    rows = generate(make_decoder(model), params, PROMPTS, max_new_tokens=8)

    for prompt, row in zip(PROMPTS, rows, strict=True):
        text = list(prompt)
        for _ in range(8):
            # Causal: what stands right of the text does not matter, so one shape serves all lengths.
            padded = np.zeros((1, 16), np.int32)
            padded[0, : len(text)] = text
            text.append(int(np.argmax(forward(padded)[0, len(text) - 1])))
        assert row == text[len(prompt) :]


@pytest.mark.parametrize("name", ["llama3, grouped", "gemma3, pattern of three"])
def test_greedy_text_equals_that_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    from models_hf_oracle import hf_model, our_params

    arch, model = architecture(name), make_blueprint(name)
    theirs = hf_model(arch)
    params = jax.tree.map(jnp.asarray, our_params(theirs, arch))

    ours = generate(make_decoder(model), params, PROMPTS, max_new_tokens=16)

    for prompt, row in zip(PROMPTS, ours, strict=True):
        tokens = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        assert row == tokens[0, len(prompt) :].tolist()


def test_a_seed_repeats_its_text_and_another_seed_does_not() -> None:
    model = make_blueprint("llama3, grouped")
    params, decoder = random_params(model), make_decoder(model)
    sampling = Sampling(temperature=1.0)

    def text(seed: int) -> list[list[int]]:
        return generate(decoder, params, PROMPTS, max_new_tokens=12, sampling=sampling, seed=seed)

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_row_is_drawn_independently_of_the_other_prompts() -> None:
    model = make_blueprint("llama3, grouped")
    params, decoder, sampling = random_params(model), make_decoder(model), Sampling()
    long_neighbor = [PROMPTS[1], list(range(40))[:30]]

    alone = generate(decoder, params, [PROMPTS[1]], max_new_tokens=12, sampling=sampling)
    beside = generate(decoder, params, long_neighbor, max_new_tokens=12, sampling=sampling)

    assert beside[0] == alone[0]


def test_rows_of_the_table_without_a_token_are_never_drawn() -> None:
    model = make_blueprint("llama3, grouped")
    flat = {path: jnp.zeros_like(value) for path, value in random_params(model).items()}
    rows = generate(
        make_decoder(model, 7), flat, [[1], [2]], max_new_tokens=40, sampling=Sampling()
    )
    drawn = {token for row in rows for token in row}
    assert drawn <= set(range(7))
    assert len(drawn) > 3  # all 7 are equally likely


def test_every_row_and_every_step_draws_anew() -> None:
    model = make_blueprint("llama3, grouped")
    flat = {path: jnp.zeros_like(value) for path, value in random_params(model).items()}

    one, two = generate(
        make_decoder(model), flat, [[1], [1]], max_new_tokens=40, sampling=Sampling()
    )

    # All 61 tokens are equally likely: 40 draws hit 29.5 different ones on average, deviation about 2.
    assert len(set(one)) > 20
    assert one != two


def test_a_row_ends_with_the_end_token_and_the_others_go_on() -> None:
    model = make_blueprint("llama3, grouped")
    params, decoder = random_params(model), make_decoder(model)
    free = generate(decoder, params, PROMPTS, max_new_tokens=10)
    end = free[0][3]

    steps = list(stream(decoder, params, PROMPTS, max_new_tokens=10, eod_id=end))
    rows = generate(decoder, params, PROMPTS, max_new_tokens=10, eod_id=end)

    for row, unbounded in zip(rows, free, strict=True):
        kept = unbounded.index(end) + 1 if end in unbounded else 10
        assert row == unbounded[:kept]
    assert len(steps) == max(map(len, rows))
    assert all(step[0] == DONE for step in steps[len(rows[0]) :])


LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.06, 0.04]]))


def _drawn(sampling: Sampling, num: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), num)
    tokens = sample(jnp.broadcast_to(LOGITS, (num, 5)), keys, sampling)
    return np.bincount(np.asarray(tokens), minlength=5) / num


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.25, 0.15, 0.06, 0.04]),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        # 0.5 alone is not 0.7; with 0.25 it is.
        (Sampling(top_p=0.7), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(top_p=0.1), [1, 0, 0, 0, 0]),
        # Half the temperature squares the probabilities: 25, 6.25, 2.25, 0.36, 0.16 of 34.02.
        (Sampling(temperature=0.5), [0.7349, 0.1837, 0.0661, 0.0106, 0.0047]),
        (Sampling(temperature=0), [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_that_the_filters_leave(
    sampling: Sampling, expected: list[float]
) -> None:
    # A frequency of 4000 draws deviates by at most sqrt(0.25 / 4000) = 0.008; four of those.
    drawn = _drawn(sampling)
    np.testing.assert_allclose(drawn, expected, atol=0.032)
    assert all(drawn[np.array(expected) == 0] == 0)


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[1], []], 4, "prompt 1 has no tokens"),
        ([[VOCAB]], 4, f"61, outside the vocabulary of {VOCAB}"),
        ([[1] * 40], 9, "make 49, over max_positions 48.* at most 8 new tokens"),
        ([[1]], 0, "max_new_tokens 0"),
    ],
)
def test_a_prompt_that_cannot_be_run_is_refused(
    prompts: list[list[int]], new: int, message: str
) -> None:
    model = make_blueprint("gpt2")
    with pytest.raises(UserError, match=message):
        generate(make_decoder(model), random_params(model), prompts, max_new_tokens=new)


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}])
def test_impossible_sampling_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)
