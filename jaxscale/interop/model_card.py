"""`README.md` of an exported model: what it is and how it was trained, from the checkpoint's own record."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxscale.checkpoint.places import Place, copy_file
from jaxscale.models.description import Description
from jaxscale.telemetry import metrics
from jaxscale.telemetry.format import compact

METRICS_FILE = "metrics.jsonl"
_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- jaxscale
---
"""
_USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
"""


def model_card(
    metadata: Mapping[str, Any],
    description: Description,
    *,
    step: int,
    run: Place | None,
    notes: list[str],
) -> str:
    """Markdown. metadata: of the checkpoint; run: its directory, where the losses are."""
    config = metadata["config"]
    rows = "\n".join(
        f"| {name} | {value} |" for name, value in _facts(metadata, description, step, run)
    )
    remarks = "".join(f"\n- {note}" for note in notes)
    head = f"# {config['name']}\n\nTrained and exported with jaxscale.\n\n| | |\n|---|---|\n{rows}"
    return f"{_FRONT}\n{head}\n{remarks}\n\n{_USAGE}"


def _facts(
    metadata: Mapping[str, Any], description: Description, step: int, run: Place | None
) -> Iterator[tuple[str, str]]:
    config = metadata["config"]
    count = sum(spec.size for spec in description.values())
    yield "architecture", _architecture(config["model"])
    yield "parameters", f"{count:,} ({compact(count)})"
    if config["model"].get("init_from"):
        yield "started from", _last_name(config["model"]["init_from"])
    if step:
        yield from _training(config, step)
        yield from _losses(run, step)
        yield "layout", _layout(metadata.get("plan", {}))
        yield "seed", str(config["training"]["seed"])
    packages = metadata.get("environment", {}).get("packages", {})
    yield (
        "software",
        ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    )


def _training(config: Mapping[str, Any], step: int) -> Iterator[tuple[str, str]]:
    training, data = config["training"], config["data"]
    tokens = step * training["global_batch"] * data["sequence_length"]
    yield "trained for", f"{step:,} of {training['steps']:,} steps, {tokens:,} tokens"
    yield "batch", f"{training['global_batch']:,} rows of {data['sequence_length']:,} tokens"
    yield "data", ", ".join(_source(source) for source in data["train"])
    yield "optimizer", _optimizer(training)


def _architecture(model: Mapping[str, Any]) -> str:
    sizes = ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "vocab_size")
    words = (f"{key} {model[key]:,}" for key in sizes if model.get(key))
    return ", ".join([str(model["family"]), *words])


def _optimizer(training: Mapping[str, Any]) -> str:
    optimizer, schedule = training["optimizer"], training["schedule"]
    return (
        f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g} ({schedule['name']}), weight decay "
        f"{optimizer['weight_decay']:g}"
    )


def _source(source: Mapping[str, Any]) -> str:
    name = _last_name(source["path"])
    return name if source["weight"] == 1 else f"{name} (weight {source['weight']:g})"


def _last_name(path: str) -> str:
    """Of a path on the machine that trained, all that is anybody else's business."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _losses(run: Place | None, step: int) -> Iterator[tuple[str, str]]:
    """The newest losses up to the step, where the run's own record is there."""
    records = [] if run is None else _records(run / METRICS_FILE)
    for key, name in (("loss", "training loss"), ("eval_loss", "evaluation loss")):
        values = [r[key] for r in records if r["step"] <= step and isinstance(r.get(key), float)]
        if values:
            yield name, f"{values[-1]:.4f} nats a token (perplexity {math.exp(values[-1]):,.2f})"


def _records(file: Place) -> list[dict[str, Any]]:
    if isinstance(file, Path):
        return metrics.read(file)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / METRICS_FILE
        if file.exists():
            copy_file(file, copy)
        return metrics.read(copy)


def _layout(plan: Mapping[str, Any]) -> str:
    axes = ("data", "fsdp", "context", "expert", "tensor", "pipeline")
    words = [f"{axis} {plan[axis]}" for axis in axes if plan.get(axis, 1) != 1]
    return ", ".join(words) or "one device"
