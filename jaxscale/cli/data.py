"""`jaxscale data`: text into token stores, and a look at a batch as the model sees it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jaxscale.data.prepare import Prepared

app = typer.Typer(help="Prepare token stores, and look into batches.", no_args_is_help=True)


@app.command()
def prepare(
    sources: Annotated[
        list[str], typer.Argument(help="files, directories, globs; local, gs://, s3://")
    ],
    out: Annotated[Path, typer.Option(help="directory of the stores")],
    tokenizer: Annotated[str, typer.Option(help="bytes, train, or a tokenizer.json")] = "bytes",
    vocab_size: Annotated[
        int, typer.Option(min=257, help="tokens, where tokenizer is train")
    ] = 8192,
    text_key: Annotated[str, typer.Option(help="field or column that holds the text")] = "text",
    eval_fraction: Annotated[float, typer.Option(help="share held out for evaluation")] = 0.01,
    separator: Annotated[
        str | None, typer.Option(help="string between documents of a .txt")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="processes")] = 2,
) -> None:
    """Tokenize text into stores. Run the same command again to go on where it stopped."""
    from jaxscale.cli.render.preparation import preparation_report
    from jaxscale.config.data_section import DataSection, Source
    from jaxscale.data.corpus import make_tokenizer
    from jaxscale.data.prepare import prepare as prepare_stores

    section = DataSection(
        train=[Source(path=source) for source in sources],
        tokenizer=tokenizer,
        tokenizer_vocab_size=vocab_size,
        text_key=text_key,
        document_separator=separator,
        store=str(out),
    )
    chosen = make_tokenizer(section)
    with preparation_report() as report:
        made = prepare_stores(
            sources,
            out,
            chosen,
            text_key=text_key,
            eval_fraction=eval_fraction,
            workers=workers,
            document_separator=separator,
            progress=report,
        )
    _print_stores(made, out)


def _print_stores(made: "Prepared", out: Path) -> None:
    from jaxscale.data.tokenizers import BYTES

    for store in (made.train, made.eval):
        if store is not None:
            counts = store.manifest
            plural = "" if counts.num_documents == 1 else "s"
            typer.echo(
                f"{store.path}: {counts.num_tokens:,} tokens, {counts.num_documents:,} document{plural}"
            )
    if made.reused:
        typer.echo("nothing to do: the stores were made from these sources already")
    record = made.train.manifest.tokenizer
    spec = BYTES if record.spec == BYTES else made.train.path
    typer.echo(
        f"train on it: data.train={out} data.tokenizer={spec}, with a model.vocab_size of at least {record.vocab_size}"
    )


@app.command()
def inspect(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    step: Annotated[int, typer.Option(min=0, help="step whose batch to show, from 0")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="rows to show")] = 2,
) -> None:
    """Show a batch as the model sees it: text, document borders, masked targets, and where each row comes from."""
    from rich.console import Console

    from jaxscale.cli.render.preparation import preparation_report
    from jaxscale.config.loading import load_config
    from jaxscale.data.corpus import open_corpus
    from jaxscale.data.inspect import render_batch
    from jaxscale.data.loader import Batches

    settings = load_config(config, overrides or [])
    with preparation_report() as report:
        corpus = open_corpus(settings.data, report)
    size, training = settings.data.sequence_length, settings.training
    batches = Batches(corpus.train, size, training.global_batch, training.seed)
    shown = min(rows, training.global_batch)
    text = render_batch(
        batches.rows(step, 0, shown),
        corpus.tokenizer,
        shown,
        origins=batches.describe(step, 0, shown),
    )
    # Soft: a terminal wraps the rows itself, and nothing is lost where the output goes to a file.
    Console().print(text, soft_wrap=True, end="")
