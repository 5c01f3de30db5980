"""`jaxscale generate`: text from a trained model, as it comes."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def generate(
    run: Annotated[Path, typer.Argument(help="run directory")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value ..., for example plan.tensor=2")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="text to go on from; give it again for a batch")
    ] = None,
    tokens: Annotated[int, typer.Option(help="new tokens a prompt")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="keep the k most likely tokens")] = None,
    top_p: Annotated[
        float, typer.Option(help="keep the most likely tokens up to this probability")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    step: Annotated[int | None, typer.Option(help="checkpoint (default: the newest)")] = None,
) -> None:
    """Print continuations: one prompt streams as it is drawn, several are printed when they are done."""
    from jaxscale.models.sampling import Sampling
    from jaxscale.training.sampling import make_sampler, sample_text, stream_text
    from jaxscale.training.trained import load_trained

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    trained = load_trained(
        run, overrides or [], step=step, warn=lambda text: typer.echo(text, err=True)
    )
    sampler = make_sampler(trained.model, trained.placement, trained.tokenizer)
    prompts = prompt or [""]
    if len(prompts) == 1:
        sys.stdout.write(prompts[0])
        for piece in stream_text(
            sampler, trained.tokenizer, trained.params, prompts[0], tokens, sampling, seed
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    texts = sample_text(
        sampler,
        trained.tokenizer,
        trained.params,
        prompts,
        num_tokens=tokens,
        sampling=sampling,
        seed=seed,
    )
    typer.echo("\n\n".join(texts))
