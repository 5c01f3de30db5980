"""The `jaxscale` command. Heavy imports live inside the commands, so that `--help` answers at once."""

import sys

import typer

from jaxscale.cli import config, data, describe, evaluate, generate, train
from jaxscale.errors import UserError

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75

app = typer.Typer(
    help="Plan, train and export large models in JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("describe")(describe.describe)
app.command("eval")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")


def run() -> None:
    """Entry point: a user's mistake is one message and status 2, our own a traceback and status 1."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USER_ERROR)
