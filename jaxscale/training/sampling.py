"""Text from a model on its mesh."""

from collections.abc import Callable, Iterator, Sequence

import jax

from jaxscale.data.tokenizers import Tokenizer
from jaxscale.errors import UserError
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, Params
from jaxscale.models.generation import DONE, make_decoder, stream
from jaxscale.models.sampling import Sampling
from jaxscale.parallel.placement import Placement
from jaxscale.training.precision import cast, compute_dtype
from jaxscale.training.stage_order import unstaged_params

# One list of new token ids a prompt, step by step.
TokenStream = Iterator[list[list[int]]]
Sampler = Callable[[Params, Sequence[list[int]], int, Sampling, int], TokenStream]

# What a decoder writes for bytes that are no character, or not yet a whole one.
_BROKEN = "\N{REPLACEMENT CHARACTER}"


def make_sampler(model: Blueprint, placement: Placement, tokenizer: Tokenizer) -> Sampler:
    """A function (parameters, prompts as ids, number of new tokens, sampling, seed) -> stream of new tokens.

    Parameters come as the placement stores them. Generation is not pipelined: they are laid out anew, in the model's
    order, split over all axes, and each layer is gathered when it runs.
    The end of document ends a row and is not among its tokens. Raises UserError for a module that cannot decode with
    a cache.
    """
    inside = placement.for_decoding()
    dtype = compute_dtype(placement.plan.precision, placement.platform)
    decoder = make_decoder(model, tokenizer.vocab_size)
    ends = (DONE, tokenizer.eod_id)

    def run(
        params: Params, prompts: Sequence[list[int]], num_tokens: int, sampling: Sampling, seed: int
    ) -> TokenStream:
        specs = placement.stored(model.description)
        unstaged = unstaged_params(params, specs, placement, inside)
        with jax.set_mesh(placement.mesh), use_forward_context(inside.forward_context()):
            steps = stream(
                decoder,
                cast(unstaged, dtype),
                prompts,
                max_new_tokens=num_tokens,
                sampling=sampling,
                seed=seed,
                eod_id=tokenizer.eod_id,
            )
            for tokens in steps:
                yield [[] if token in ends else [int(token)] for token in tokens]

    return run


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt, after what the tokenizer puts before every text; nothing at all is the end of a document.

    Raises UserError for what is no text.
    """
    try:
        return [*tokenizer.start_ids, *tokenizer.encode(prompt)] or [tokenizer.eod_id]
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {prompt!r} is not text: it has broken UTF-8") from error


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
    starts = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    for step in sampler(params, starts, num_tokens, sampling, seed):
        for row, new in zip(rows, step, strict=True):
            row.extend(new)
    return [
        prompt + _text_after(tokenizer, start, row)
        for prompt, start, row in zip(prompts, starts, rows, strict=True)
    ]


def stream_text(
    sampler: Sampler,
    tokenizer: Tokenizer,
    params: Params,
    prompt: str,
    *,
    num_tokens: int,
    sampling: Sampling,
    seed: int,
) -> Iterator[str]:
    """The continuation in pieces, each as soon as its characters are whole; together they are that of `sample_text`."""
    context, new = encode_prompt(tokenizer, prompt), list[int]()
    for (token,) in sampler(params, [context], num_tokens, sampling, seed):
        new += token
        piece = _text_after(tokenizer, context, new)
        if piece and not piece.endswith(_BROKEN):
            yield piece
            context, new = new, []
    if new:
        yield _text_after(tokenizer, context, new)


def _text_after(tokenizer: Tokenizer, context: list[int], new: list[int]) -> str:
    """What `new` adds to the text of `context`: some tokenizers drop a space before the first token they decode."""
    return tokenizer.decode(context + new)[len(tokenizer.decode(context)) :]
