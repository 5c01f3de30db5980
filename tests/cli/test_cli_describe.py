"""`jaxscale describe` and `jaxscale config`: models and configurations as text and as data."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_cases import LARGEST, ROOT, call, succeed

from jaxscale.config.loading import load_config

# Meta's count of Llama 3.1 405B, to the parameter (arXiv:2407.21783, and the sum of its published tensors).
PARAMETERS = 405_853_388_800


def test_the_largest_model_is_described_to_the_parameter() -> None:
    found = json.loads(succeed("describe", LARGEST, "--json"))
    assert found["total_parameters"] == PARAMETERS
    assert sum(spec["count"] for spec in found["parameters"].values()) == PARAMETERS
    assert found["parameters"]["layers/mlp/up"] == {
        "axes": ["layers", "embed", "mlp"],
        "shape": [126, 16384, 53248],
        "dtype": "float32",
        "init": found["parameters"]["layers/mlp/up"]["init"],
        "count": 126 * 16384 * 53248,
    }
    assert found["training_flops_per_token"] == 3 * sum(found["forward_flops_per_token"].values())


@pytest.mark.parametrize("width", ["80", "100"])
def test_the_table_fits_the_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = succeed("describe", LARGEST)
    assert f"{PARAMETERS:,} parameters" in text
    assert "109,924,319,232" in text
    assert "layers=126" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # Nothing was cut off.
    assert max(map(len, text.splitlines())) <= int(width)


def test_a_run_is_described_at_its_own_length_and_under_overrides(config: Path) -> None:
    """Of the model only layers count twice: the table and the last norm do not."""
    one, two = (
        json.loads(succeed("describe", config, f"model.num_layers={n}", "--json")) for n in (1, 2)
    )
    assert one["sequence_length"] == 32
    shared = 300 * 32 + 32
    assert two["total_parameters"] - shared == 2 * (one["total_parameters"] - shared)
    longer = json.loads(succeed("describe", config, "--json", "--sequence-length", "64"))
    # Keys that a query sees on average: (n + 1) / 2.
    scores = [found["forward_flops_per_token"]["attention scores"] for found in (longer, two)]
    assert scores[0] / scores[1] == 65 / 33


@pytest.mark.parametrize("name", [("describe",), ("config", "show"), ("data", "inspect")])
@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (None, "training.steps=1", "no configuration file"),
        ("model: {family: [", "training.steps=1", "is not valid YAML"),
        ("- 1", "training.steps=1", "must hold sections"),
        ("", "training.stepz=1", "unknown key 'training.stepz' (did you mean 'steps'?)"),
        ("", "modle.num_layers=1", "unknown key 'modle' (did you mean 'model'?)"),
        ("", "training.steps=soon", "training.steps: Input should be a valid integer"),
        ("", "steps", "is not key=value"),
    ],
)
def test_a_wrong_configuration_is_refused(
    config: Path,
    tmp_path: Path,
    name: tuple[str, ...],
    text: str | None,
    override: str,
    message: str,
) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text or config.read_text())
    answer = call(*name, path, override)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_a_length_without_a_token_is_refused() -> None:
    answer = call("describe", LARGEST, "--sequence-length", "0")
    assert (answer.status, answer.out) == (2, "")
    assert "'--sequence-length'" in answer.err


@pytest.mark.parametrize("overrides", [(), ("training.steps=7", "plan.tensor=2", "name=mine")])
def test_a_shown_configuration_is_the_configuration(
    config: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    shown = succeed("config", "show", config, *overrides)
    again = tmp_path / "other_name.yaml"
    again.write_text(shown)
    assert load_config(again) == load_config(config, overrides)
    assert succeed("config", "show", again) == shown


TYPES: dict[str, Any] = {
    "any": object,
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Whether a JSON schema (2020-12, as far as ours uses it) accepts a value."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    return (
        isinstance(value, TYPES[schema.get("type", "any")])
        and value == schema.get("const", value)
        and value in schema.get("enum", [value])
        and ("anyOf" not in schema or any(accepts(one, value, root) for one in schema["anyOf"]))
        and ("oneOf" not in schema or sum(accepts(x, value, root) for x in schema["oneOf"]) == 1)
        and (not isinstance(value, dict) or _accepts_object(schema, value, root))
        and (not isinstance(value, list) or _accepts_items(schema, value, root))
        and (not isinstance(value, int | float) or value >= schema.get("minimum", value))
    )


def _accepts_object(schema: dict[str, Any], value: dict[str, Any], root: dict[str, Any]) -> bool:
    known, open_ended = schema.get("properties", {}), schema.get("additionalProperties", True)
    return (
        set(schema.get("required", ())) <= set(value)
        and (open_ended is not False or set(value) <= set(known))
        and all(accepts(known[key], value[key], root) for key in set(known) & set(value))
    )


def _accepts_items(schema: dict[str, Any], value: list[Any], root: dict[str, Any]) -> bool:
    return all(accepts(schema.get("items", {}), item, root) for item in value)


def test_editors_accept_what_the_program_accepts(config: Path) -> None:
    schema = json.loads(succeed("config", "schema"))
    quickstart = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    for good in (
        quickstart,
        yaml.safe_load(config.read_text()),
        yaml.safe_load(succeed("config", "show", config)),
        {**quickstart, "model": "my_model.py:build", "extends": "base.yaml"},
        {**quickstart, "data": {"train": ["a.txt", {"path": "b.txt", "weight": 2}]}},
    ):
        assert accepts(schema, good, schema), good


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": {}},
        {"model": {"family": "llama9"}},
        {"data": {"train": 3}},
        {"data": {"train": [{"weight": 1}]}},
        {"training": {"global_batch": 8}},
        {"plan": "automatic"},
        {"plan": {"fsdp": 0}},
    ],
)
def test_editors_refuse_what_the_program_refuses(wrong: dict[str, Any]) -> None:
    schema = json.loads(succeed("config", "schema"))
    quickstart = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    assert not accepts(schema, {**quickstart, **wrong}, schema)
