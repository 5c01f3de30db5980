"""What is predicted and measured: plans of Llama-shaped models on one device."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from jaxscale.config.plan import Plan, Remat
from jaxscale.config.run import RunConfig

ROOT = Path(__file__).parents[3]
_LLAMA: dict[str, Any] = {"family": "llama3.2", "max_positions": 8192}
# Sizes that have no file in configs/models. 300m: 285 million parameters.
_MODELS: dict[str, dict[str, Any]] = {
    "300m": _LLAMA | {
        "vocab_size": 32768, "num_layers": 16, "embed_dim": 1024, "num_heads": 16, "num_kv_heads": 8, "head_dim": 64,
        "mlp_dim": 4096,
    },
    "tiny": _LLAMA | {
        "vocab_size": 128, "num_layers": 2, "embed_dim": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
        "mlp_dim": 96,
    },
}  # fmt: skip
_FILES = {"1b": "llama3.2-1b", "3b": "llama3.2-3b"}
# MODEL ROWSxSEQUENCE/MICROBATCHES REMAT [packed]
_NAME = re.compile(r"(\w+) (\d+)x(\d+)/(\d+) (\w+)( packed)?")

# Every level of every factor early, so that a run that is stopped has seen them; the last ones are extra.
CASES = (
    "1b 4x4096/1 none;3b 4x2048/1 full;300m 8x1024/1 none;1b 4x4096/1 dots;3b 4x4096/2 minimal;300m 4x4096/1 full;"
    "1b 8x2048/4 none;3b 2x4096/1 dots;300m 4x8192/1 dots;1b 2x8192/1 minimal;3b 8x1024/4 none;1b 8x2048/2 full;"
    "300m 16x2048/2 minimal;3b 2x8192/2 full;1b 16x1024/1 minimal;300m 32x1024/4 none;"
    "3b 8x2048/1 minimal;1b 2x8192/1 none;1b 4x4096/1 full packed;1b 4x4096/1 none packed"
)
SMOKE = "tiny 2x64/2 dots"


@dataclass(frozen=True)
class Case:
    """rows: sequences of a step, over all microbatches. sequence: tokens of each. model: a name of `sections`.

    packed: rows have segment ids, as those of the loader do; else each is one document, as fused attention takes it.
    """

    model: str
    rows: int
    sequence: int
    microbatches: int
    remat: Remat
    packed: bool = False

    @property
    def name(self) -> str:
        """What `parse_case` reads."""
        packed = " packed" if self.packed else ""
        batch = f"{self.rows}x{self.sequence}/{self.microbatches}"
        return f"{self.model} {batch} {self.remat}{packed}"

    @property
    def plan(self) -> Plan:
        return Plan(data=1, microbatches=self.microbatches, remat=self.remat)

    @property
    def config(self) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": sections(self.model),
                "data": {"sequence_length": self.sequence},
                "training": {"steps": 1000, "global_batch": self.rows},
            }
        )


def sections(model: str) -> dict[str, Any]:
    """A configuration's `model:` section."""
    if model in _MODELS:
        return _MODELS[model]
    text = (ROOT / f"configs/models/{_FILES[model]}.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)["model"]
    return found


def parse_case(text: str) -> Case:
    """`1b 8x2048/4 none` as a case. Exits for what is none."""
    match = _NAME.fullmatch(text.strip())
    if match is None:
        sys.exit(f"{text!r}: a plan is MODEL ROWSxSEQUENCE/MICROBATCHES REMAT [packed]")
    model, *numbers, name, packed = match.groups()
    remats: dict[str, Remat] = {each: each for each in get_args(Remat)}
    models = [*_MODELS, *_FILES]
    if model not in models or name not in remats:
        sys.exit(f"{text!r}: models are {', '.join(models)}, policies {', '.join(remats)}")
    rows, sequence, microbatches = map(int, numbers)
    return Case(model, rows, sequence, microbatches, remats[name], packed is not None)
