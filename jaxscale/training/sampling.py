"""Text from a model on its mesh."""

from collections.abc import Callable, Iterator, Sequence

import jax

from jaxscale.data.tokenizers import Tokenizer
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, Params
from jaxscale.models.generation import DONE, make_decoder, stream
from jaxscale.models.sampling import Sampling
from jaxscale.parallel.placement import Placement
from jaxscale.training.precision import cast, compute_dtype

# One list of new token ids a prompt, step by step.
TokenStream = Iterator[list[list[int]]]
Sampler = Callable[[Params, Sequence[str], int, Sampling, int], TokenStream]


def make_sampler(model: Blueprint, placement: Placement, tokenizer: Tokenizer) -> Sampler:
    """A function (parameters, prompts, number of new tokens, sampling, seed) -> stream of new tokens.

    Raises UserError for a module that cannot decode with a cache.
    """
    inside = placement.for_decoding()
    dtype = compute_dtype(placement.plan.precision, placement.platform)
    decoder = make_decoder(model)

    def run(
        params: Params, prompts: Sequence[str], num_tokens: int, sampling: Sampling, seed: int
    ) -> TokenStream:
        ids = [tokenizer.encode(prompt) or [tokenizer.eod_id] for prompt in prompts]
        with jax.set_mesh(placement.mesh), use_forward_context(inside.forward_context()):
            steps = stream(
                decoder,
                cast(params, dtype),
                ids,
                max_new_tokens=num_tokens,
                sampling=sampling,
                seed=seed,
                eod_id=tokenizer.eod_id,
            )
            for tokens in steps:
                yield [[] if token == DONE else [int(token)] for token in tokens]

    return run


def sample_text(
    sampler: Sampler,
    tokenizer: Tokenizer,
    params: Params,
    prompts: Sequence[str],
    *,
    num_tokens: int,
    sampling: Sampling,
    seed: int,
) -> list[str]:
    """Each prompt with its continuation."""
    rows: list[list[int]] = [[] for _ in prompts]
    for step in sampler(params, prompts, num_tokens, sampling, seed):
        for row, new in zip(rows, step, strict=True):
            row.extend(token for token in new if token != tokenizer.eod_id)
    return [prompt + tokenizer.decode(row) for prompt, row in zip(prompts, rows, strict=True)]


def stream_text(
    sampler: Sampler,
    tokenizer: Tokenizer,
    params: Params,
    prompt: str,
    num_tokens: int,
    sampling: Sampling,
    seed: int,
) -> Iterator[str]:
    """The continuation in pieces, each as soon as its characters are whole."""
    ids: list[int] = []
    shown = ""
    for step in sampler(params, [prompt], num_tokens, sampling, seed):
        ids.extend(token for token in step[0] if token != tokenizer.eod_id)
        text = tokenizer.decode(ids)
        # A token may end inside a character; its bytes show as U+FFFD until the rest has come.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
