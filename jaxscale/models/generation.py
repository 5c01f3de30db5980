"""Text generation with a KV cache: one prefill pass, then one compiled step a token.

Usage::

    decoder = make_decoder(blueprint(model_builder(section)))
    for tokens in stream(decoder, params, prompts, max_new_tokens=64, sampling=Sampling(temperature=0.8)):
        print(tokens)  # one per prompt, DONE for rows that have ended
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from jaxscale.errors import UserError
from jaxscale.models.architecture import Architecture
from jaxscale.models.cache import KVCache, empty_cache
from jaxscale.models.description import Blueprint, bind
from jaxscale.models.sampling import Sampling, sample
from jaxscale.models.transformer import Transformer

DONE = -1
# Prompts and caches are padded to a multiple of this many tokens, so that few shapes are compiled.
_LENGTH_STEP = 64

Params = Mapping[str, jax.Array]
Prompts = Sequence[Sequence[int]]
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Decoder:
    """A model's compiled decoding step; make it once, generate often.

    advance(params, tokens, positions, last, cache, keys, sampling=...): runs new tokens [batch, new] at their
    positions, and gives the token [batch] chosen after place `last` [batch] and the cache (donated) with them in it.
    """

    arch: Architecture
    advance: Callable[..., tuple[jax.Array, KVCache]]


def make_decoder(model: Blueprint, num_tokens: int | None = None) -> Decoder:
    """The decoding step of one of our transformers; UserError for a module that has no KV cache.

    num_tokens: tokens that the tokenizer knows, where the model's table has more rows; the others are never chosen.
    """
    module = nnx.merge(model.graph, nnx.from_flat_state({**model.variables, **model.streams}))
    if not isinstance(module, Transformer):
        raise UserError(
            f"{type(module).__name__} cannot generate: only the built-in transformers keep a KV cache"
        )

    @partial(jax.jit, static_argnames="sampling", donate_argnames="cache")
    def advance(
        params: Params,
        tokens: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        last: Int[Array, " batch"],
        cache: KVCache,
        keys: Key[Array, " batch"],
        *,
        sampling: Sampling,
    ) -> tuple[Int[Array, " batch"], KVCache]:
        module = bind(model, params)
        assert isinstance(module, Transformer)
        hidden, cache = module.extend(tokens, positions, cache)
        logits = module.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]
        place = jnp.take_along_axis(positions, last[:, None], axis=1)[:, 0]
        logits = logits[:, :num_tokens]
        return sample(logits, jax.vmap(jax.random.fold_in)(keys, place), sampling), cache

    return Decoder(module.arch, advance)


def stream(
    decoder: Decoder,
    params: Params,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    eod_id: int | None = None,
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Yields the new token of every prompt, step by step, until all rows have ended.

    A row ends after `max_new_tokens` or with `eod_id` (which is yielded); from then on it yields DONE. What is drawn
    depends on the parameters, the prompt, the seed, and the prompt's place in the batch, not on the other prompts.
    Raises UserError for a prompt that is empty, too long, or has tokens outside the vocabulary.
    """
    _check_prompts(decoder.arch, prompts, max_new_tokens)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens, positions = _left_aligned(decoder.arch, prompts)
    cache = _cache_for(decoder.arch, params, lengths, max_new_tokens)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(prompts)))
    last, running = lengths - 1, np.ones(len(prompts), bool)
    for step in range(max_new_tokens):
        chosen, cache = decoder.advance(
            params, tokens, positions, last, cache, keys, sampling=sampling
        )
        new = np.asarray(chosen)
        yield np.where(running, new, DONE)
        running &= new != eod_id
        if not running.any():
            return
        tokens, positions = new[:, None], (lengths + step)[:, None]
        last = np.zeros_like(lengths)


def generate(
    decoder: Decoder,
    params: Params,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    eod_id: int | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, `eod_id` included where it ended a row. See `stream`."""
    steps = stream(
        decoder,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        eod_id=eod_id,
    )
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in steps:
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.extend([] if token == DONE else [token])
    return rows


def _left_aligned(arch: Architecture, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [batch, new] padded on the right, and their positions."""
    longest = _padded(arch, max(len(prompt) for prompt in prompts))
    tokens = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    positions = np.broadcast_to(np.arange(longest, dtype=np.int32), tokens.shape)
    return tokens, positions


def _cache_for(
    arch: Architecture, params: Params, lengths: np.ndarray, max_new_tokens: int
) -> KVCache:
    length = _padded(arch, int(lengths.max()) + max_new_tokens)
    dtype = params["embedding/table"].dtype
    return empty_cache(arch, batch=len(lengths), length=length, dtype=dtype)


def _padded(arch: Architecture, length: int) -> int:
    padded = -(-length // _LENGTH_STEP) * _LENGTH_STEP
    # Beyond the learned positions a row would be NaN, and NaN times a weight of zero is not zero.
    return min(padded, arch.max_positions) if arch.positions == "learned" else padded


def _check_prompts(arch: Architecture, prompts: Prompts, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens {max_new_tokens} asks for nothing: use 1 or more")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {row} has no tokens: start it with the end-of-document token")
        if min(prompt) < 0 or max(prompt) >= arch.vocab_size:
            raise UserError(
                f"prompt {row} has tokens from {min(prompt)} to {max(prompt)}, outside the vocabulary of "
                f"{arch.vocab_size}: was it made with another tokenizer?"
            )
        total = len(prompt) + max_new_tokens
        if total > arch.max_positions:
            raise UserError(
                f"prompt {row} of {len(prompt)} tokens and {max_new_tokens} new ones make {total}, over max_positions "
                f"{arch.max_positions}: shorten the prompt or ask for at most "
                f"{max(0, arch.max_positions - len(prompt))} new tokens"
            )
