"""`jaxscale config`: the configuration as the program sees it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Show a configuration, or the schema that editors use.", no_args_is_help=True
)


@app.command()
def schema() -> None:
    """Print the JSON schema of a run's configuration."""
    from jaxscale.config.text import schema as make_schema

    typer.echo(json.dumps(_with_short_forms(make_schema()), indent=2))


def _with_short_forms(document: dict[str, Any]) -> dict[str, Any]:
    """The schema with what a YAML file may say in fewer words: `train: book.txt`, `model: file.py:build`.

    Validators expand these before a section sees them, so its own schema does not know them.
    """
    run, data = document["properties"], document["$defs"]["DataSection"]["properties"]
    run["model"] = {"anyOf": [run["model"], {"type": "string"}]}
    source = data["train"]["items"]
    one = {"anyOf": [{"type": "string"}, source]}
    data["train"] = {
        "description": data["train"]["description"],
        "anyOf": [*one["anyOf"], {"type": "array", "items": one}],
    }
    return document


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
) -> None:
    """Print every key with its value, after `extends`, defaults and overrides."""
    from jaxscale.config.loading import load_config
    from jaxscale.config.text import to_yaml

    typer.echo(to_yaml(load_config(config, overrides or [])), nl=False)
