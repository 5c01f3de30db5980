"""Steps to compile: tiny ones on CPU devices, real models on TPU slices that are not there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig

ROOT = Path(__file__).parents[3]
TINY: dict[str, Any] = {
    "family": "llama3",
    "vocab_size": 512,
    "max_positions": 256,
    "num_layers": 4,
    "embed_dim": 256,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 32,
    "mlp_dim": 512,
}
# Tables that weigh as much as layers.
WIDE: dict[str, Any] = {**TINY, "vocab_size": 4096}
_CPU_MODELS = {
    "tiny": TINY,
    "tiny-4k": {**WIDE, "tied_embeddings": False},
    "tiny-4k-tied": {**WIDE, "tied_embeddings": True},
}
_SPLIT_LOGITS = {"vocab_activation": "fsdp"}


@dataclass(frozen=True)
class Case:
    """model: of `_CPU_MODELS`, or a file of configs/models without its ending. rows: sequences of a step."""

    cluster: str
    model: str
    mesh: tuple[tuple[str, int], ...]
    remat: str
    rows: int
    sequence: int
    microbatches: int = 1
    schedule: str = ""
    virtual_stages: int = 1
    splits_logits: bool = False

    @property
    def name(self) -> str:
        mesh = ",".join(f"{axis}={size}" for axis, size in self.mesh) or "one"
        batch = f"{self.rows}x{self.sequence}/{self.microbatches}"
        schedule = f" {self.schedule}" if self.schedule else ""
        rule = " vocab_activation" if self.splits_logits else ""
        return f"{self.cluster} {self.model} {mesh} {self.remat} {batch}{schedule}{rule}"

    @property
    def plan(self) -> Plan:
        chosen = {"remat": self.remat, "microbatches": self.microbatches, **dict(self.mesh)}
        stages = {"schedule": self.schedule, "virtual_stages": self.virtual_stages}
        rules = {"rules": _SPLIT_LOGITS} if self.splits_logits else {}
        return Plan.model_validate({**chosen, **rules, **(stages if self.schedule else {})})

    @property
    def config(self) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": _model(self.model),
                "data": {"sequence_length": self.sequence},
                "training": {"steps": 1000, "global_batch": self.rows},
            }
        )


def _model(name: str) -> dict[str, Any]:
    if name in _CPU_MODELS:
        return _CPU_MODELS[name]
    file: Any = yaml.safe_load((ROOT / f"configs/models/{name}.yaml").read_text())
    section: dict[str, Any] = file["model"]
    return section


def cases() -> Iterator[Case]:
    """The quick ones first."""
    yield from _on_cpu()
    yield from _tables_on_cpu()
    yield from _pipelines_on_cpu()
    yield from _on_tpu()
    yield from _pipelines_on_tpu()


def _on_cpu() -> Iterator[Case]:
    for remat in ("none", "full", "dots", "minimal"):
        for sizes in ("data=8", "fsdp=8", "tensor=4", "data=2,fsdp=2,tensor=2"):
            mesh = _mesh(sizes)
            cluster = "cpu:4" if sizes == "tensor=4" else "cpu:8"
            yield Case(cluster, "tiny", mesh, remat, 32, 256)
    yield Case("cpu:8", "tiny", _mesh("data=2,fsdp=2,tensor=2"), "full", 32, 256, microbatches=4)
    yield Case("cpu:8", "tiny", _mesh("fsdp=8"), "full", 32, 256, microbatches=4)


def _tables_on_cpu() -> Iterator[Case]:
    for model in ("tiny-4k", "tiny-4k-tied"):
        for sizes in ("fsdp=8", "data=2,fsdp=4", "fsdp=4,tensor=2"):
            for splits in (False, True):
                yield Case("cpu:8", model, _mesh(sizes), "full", 32, 256, splits_logits=splits)


def _on_tpu() -> Iterator[Case]:
    for remat in ("full", "dots", "minimal"):
        yield Case("v5e:2x4", "llama3.2-1b", _mesh("fsdp=8"), remat, 8, 4096)
    yield Case("v5e:2x4", "llama3.2-1b", _mesh("fsdp=8"), "full", 8, 4096, splits_logits=True)
    for remat in ("full", "dots", "minimal"):
        yield Case("v5p:4x4x4", "llama3-8b", _mesh("fsdp=64"), remat, 64, 4096)
    yield Case("v5e:2x4", "llama3-8b", _mesh("fsdp=8"), "full", 8, 4096)
    yield Case("v5p:4x4x4", "llama3-8b", _mesh("fsdp=16,tensor=4"), "full", 64, 4096)
    yield Case("v5p:4x4x4", "llama3-8b", _mesh("data=4,fsdp=16"), "full", 64, 4096)
    yield Case("v5p:4x4x4", "llama3.2-1b", _mesh("fsdp=64"), "full", 64, 4096)
    yield Case("v5p:4x4x4", "llama3.2-1b", _mesh("data=64"), "full", 64, 4096)
    yield Case("v5e:2x4", "llama3.2-1b", _mesh("fsdp=4,tensor=2"), "full", 8, 4096)
    yield Case("v5e:2x4", "llama3.2-1b", _mesh("data=8"), "full", 8, 4096)
    yield Case("v5e:2x4", "llama3.2-1b", _mesh("fsdp=8"), "full", 32, 4096, microbatches=4)


def _pipelines_on_cpu() -> Iterator[Case]:
    for remat in ("none", "full", "dots", "minimal"):
        for schedule in ("gpipe", "1f1b", "zb-h1"):
            mesh = _mesh("pipeline=4,data=2")
            yield Case("cpu:8", "tiny", mesh, remat, 32, 256, 8, schedule)
        mesh = _mesh("pipeline=2,fsdp=4")
        yield Case("cpu:8", "tiny", mesh, remat, 32, 256, 4, "interleaved", virtual_stages=2)
        mesh = _mesh("pipeline=2,fsdp=2,tensor=2")
        yield Case("cpu:8", "tiny", mesh, remat, 32, 256, 4, "1f1b")
    # Stages of two layers and of one; tables whose rows do not divide over the stages.
    yield Case("cpu:3", "tiny", _mesh("pipeline=3"), "full", 32, 256, 4, "1f1b")


def _pipelines_on_tpu() -> Iterator[Case]:
    stages = _mesh("pipeline=4,fsdp=4")
    for remat in ("full", "dots"):
        yield Case("v5e:4x4", "llama3.2-1b", stages, remat, 32, 4096, 8, "1f1b")
    yield Case(
        "v5e:4x4", "llama3.2-1b", stages, "full", 32, 4096, 8, "interleaved", virtual_stages=2
    )
    yield Case("v5p:2x2x4", "llama3.2-1b", stages, "full", 32, 4096, 8, "zb-h1")
    yield Case("v5p:4x4x2", "llama3-8b", _mesh("pipeline=4,fsdp=8"), "full", 64, 4096, 8, "1f1b")
    beside = _mesh("pipeline=4,fsdp=2,tensor=2")
    yield Case("v5e:4x4", "llama3.2-1b", beside, "full", 16, 4096, 8, "1f1b")


def _mesh(text: str) -> tuple[tuple[str, int], ...]:
    parts = (part.split("=") for part in text.split(","))
    return tuple((axis, int(size)) for axis, size in parts)
