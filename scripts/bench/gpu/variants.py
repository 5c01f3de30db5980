"""What is trained and how it is measured, the same for every contender. Imports neither JAX nor torch."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.config.loading import read_tree
from jaxscale.config.model_section import ModelSection
from jaxscale.hardware import find_chip
from jaxscale.models.architecture import Architecture
from jaxscale.models.families import resolve
from jaxscale.models.flops import training_flops_per_token

_MODELS = Path(__file__).parents[3] / "configs/models"
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
# Successors of a token in the synthetic text: a loss that starts at log(vocabulary) and can fall to log(4).
_SUCCESSORS = 4


@dataclass(frozen=True)
class Size:
    """A model and the length of its rows.

    sections: what differs from the `model:` section of `file`, a name in configs/models; all of it without a file.
    """

    sequence: int
    sections: dict[str, Any]
    file: str = ""

    def model(self) -> ModelSection:
        base = read_tree(_MODELS / f"{self.file}.yaml")["model"] if self.file else {}
        return ModelSection.model_validate({"family": "llama3.2", **base, **self.sections})

    def architecture(self) -> Architecture:
        return resolve(self.model())


def _sections(vocab: int, layers: int, heads: int, head_dim: int) -> dict[str, Any]:
    embed = heads * head_dim
    return {
        "vocab_size": vocab,
        "max_positions": 4096,
        "num_layers": layers,
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": heads // 2,
        "head_dim": head_dim,
        "mlp_dim": 3 * embed,
    }


# Embeddings are tied in all of them: torch_llama has one table. A quarter of the 8B's layers is what one GPU trains
# with some room: 2.27 billion parameters, 25.4 GiB of state.
SIZES = {
    "1b": Size(4096, {}, "llama3.2-1b"),
    "1b-128": Size(4096, {"num_heads": 16, "num_kv_heads": 4, "head_dim": 128}, "llama3.2-1b"),
    "8b-layers": Size(4096, {"num_layers": 8, "tied_embeddings": True}, "llama3-8b"),
    "small": Size(256, _sections(1024, 4, 4, 64)),
    "tiny": Size(32, _sections(128, 2, 2, 16)),
}


@dataclass(frozen=True)
class Variant:
    """How one run trains. `spec` is the text it was parsed from, and its name in results.

    rows: sequences a step. remat: a remat policy of ours; for torch, `none` or `full`. unroll: layers an iteration of
    the layer scan. attention: an implementation name of ours; for torch `auto`, `flash`, `cudnn` or `cudnn_repeat`.
    documents: `whole` rows of one document, as PyTorch's causal attention takes them, or `packed` ones with segment
    ids, as our loader gives them. chunk: tokens whose logits exist at one time (torch: 0 is all). precision: `auto` is
    bfloat16 on GPU. xla: flags of the process, `name:value+name:value`, without dashes. torch_mode: of
    `torch.compile`, or `eager`.
    """

    spec: str
    rows: int = 8
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
    documents: str = "whole"
    chunk: int = 1024
    precision: str = "auto"
    xla: str = ""
    torch_mode: str = "default"


def parse_variant(spec: str) -> Variant:
    """`rows=8,remat=dots` as a variant; SystemExit for a key that there is not."""
    kinds = {each.name: each.type for each in fields(Variant) if each.name != "spec"}
    values: dict[str, Any] = {}
    for pair in filter(None, spec.split(",")):
        name, _, value = pair.partition("=")
        if name not in kinds:
            raise SystemExit(f"variant {spec!r}: no key {name!r}; there are {', '.join(kinds)}")
        values[name] = int(value) if kinds[name] in {int, "int"} else value
    return Variant(spec=spec, **values)


@dataclass(frozen=True)
class Timing:
    """How a contender measures: steps before the clock runs, then `groups` times `steps` with one wait a group.

    One wait a group: a training loop runs ahead of the device, so a wait a step would count what it hides.
    """

    warmup: int = 3
    groups: int = 5
    steps: int = 4


@dataclass
class Measured:
    """What a contender prints. Times in seconds; first_step from the start of the process, compilation included."""

    first_step: float = 0.0
    step: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows: int = 0
    tokens_per_second: float = 0.0
    mfu: float | None = None
    peak_gib: float | None = None
    device: str = ""
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    step: Callable[[int], Any], wait: Callable[[Any], float], timing: Timing, started: float
) -> Measured:
    """Run `step(index)`, which returns a loss on the device; `wait(loss)` returns it when the device is done."""
    losses = [wait(step(0))]
    result = Measured(first_step=time.time() - started)
    losses += [wait(step(index)) for index in range(1, timing.warmup)]
    for group in range(timing.groups):
        first = timing.warmup + group * timing.steps
        begin = time.perf_counter()
        pending = [step(index) for index in range(first, first + timing.steps)]
        losses.append(wait(pending[-1]))
        result.step.append((time.perf_counter() - begin) / timing.steps)
    result.losses = losses
    return result


def rate(result: Measured, size: Size, rows: int, device: str) -> None:
    """Fill in rows, tokens a second and MFU, by one formula and one peak for all, where the chip is known."""
    result.device, result.rows = device, rows
    result.tokens_per_second = rows * size.sequence / statistics.median(result.step)
    chip = find_chip(device)
    if chip is not None:
        flops = training_flops_per_token(size.architecture(), size.sequence)
        result.mfu = result.tokens_per_second * flops / chip.peak_flops["bfloat16"]


def text(size: Size, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Tokens and the ones after them, int32 [rows, sequence]: a random walk in which a token has four successors."""
    vocab = size.architecture().vocab_size
    successors = np.random.default_rng(0).integers(0, vocab, (vocab, _SUCCESSORS))
    random = np.random.default_rng([1, seed])
    choices = random.integers(0, _SUCCESSORS, (rows, size.sequence))
    walk = np.empty((rows, size.sequence + 1), np.int32)
    walk[:, 0] = random.integers(0, vocab, rows)
    for place in range(size.sequence):
        walk[:, place + 1] = successors[walk[:, place], choices[:, place]]
    return {"tokens": walk[:, :-1].copy(), "targets": walk[:, 1:].copy()}
