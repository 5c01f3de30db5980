"""Configurations as text: full YAML for the run directory and golden tests, JSON schema for editors."""

from typing import Any

import yaml
from pydantic import BaseModel

from jaxscale.config.run import RunConfig


def to_yaml(section: BaseModel) -> str:
    """Every key with its value, in the order of declaration; loads back to an equal section."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, width=100)


def schema() -> dict[str, Any]:
    """JSON schema of a run's configuration, so that editors complete and check it."""
    document = RunConfig.model_json_schema()
    document["properties"]["extends"] = {
        "description": "base file or files, relative to this file",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return _with_short_forms(document)


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
