"""`jaxscale generate`: text from a trained model, as it comes."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jaxscale.models.sampling import Sampling
    from jaxscale.training.trained import Trained

_USUAL_TOKENS = 128


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def generate(
    run: Annotated[Path, typer.Argument(help="run directory")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value ..., for example plan.tensor=2")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="text to go on from; give it again for a batch")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help=f"new tokens a prompt (default: {_USUAL_TOKENS}, or what max_positions leaves)"
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(callback=_finite, help="0: always the most likely token")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="keep the k most likely tokens")] = None,
    top_p: Annotated[
        float,
        typer.Option(callback=_finite, help="keep the most likely tokens up to this probability"),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="seed of the draws")] = 0,
    step: Annotated[int | None, typer.Option(help="checkpoint (default: the newest)")] = None,
) -> None:
    """Print continuations: one prompt streams as it is drawn, several are printed when they are done."""
    from jaxscale.models.sampling import Sampling
    from jaxscale.training.trained import load_trained

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    trained = load_trained(
        run, overrides or [], step=step, warn=lambda text: typer.echo(text, err=True)
    )
    prompts = prompt or [""]
    count = _room(trained, prompts) if tokens is None else tokens
    _print_continuations(trained, prompts, count, sampling, seed)


def _room(trained: "Trained", prompts: list[str]) -> int:
    """New tokens that fit behind the longest prompt; at least one, so that a prompt too long is refused."""
    from jaxscale.training.sampling import encode_prompt

    longest = max(len(encode_prompt(trained.tokenizer, prompt)) for prompt in prompts)
    positions = trained.config.model.max_positions or longest + _USUAL_TOKENS
    return max(1, min(_USUAL_TOKENS, positions - longest))


def _print_continuations(
    trained: "Trained", prompts: list[str], num_tokens: int, sampling: "Sampling", seed: int
) -> None:
    from jaxscale.training.sampling import make_sampler, sample_text, stream_text

    tokenizer = trained.tokenizer
    sampler = make_sampler(trained.model, trained.placement, tokenizer)
    if len(prompts) > 1:
        texts = sample_text(
            sampler,
            tokenizer,
            trained.params,
            prompts,
            num_tokens=num_tokens,
            sampling=sampling,
            seed=seed,
        )
        typer.echo("\n\n".join(texts))
        return
    pieces = stream_text(
        sampler,
        tokenizer,
        trained.params,
        prompts[0],
        num_tokens=num_tokens,
        sampling=sampling,
        seed=seed,
    )
    # The prompt comes with the first piece: until then it may turn out to be too long.
    typer.echo(prompts[0] + next(pieces, ""), nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()
