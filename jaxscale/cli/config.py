"""`jaxscale config`: the configuration as the program sees it."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Show a configuration, or the schema that editors use.", no_args_is_help=True
)


@app.command()
def schema() -> None:
    """Print the JSON schema of a run's configuration."""
    from jaxscale.config.text import schema as make_schema

    typer.echo(json.dumps(make_schema(), indent=2))


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
) -> None:
    """Print every key with its value, after `extends`, defaults and overrides."""
    from jaxscale.config.loading import load_config
    from jaxscale.config.text import to_yaml

    typer.echo(to_yaml(load_config(config, overrides or [])), nl=False)
