"""Compiles whole train steps with the fused loss and with all logits for TPUs that are not there: peaks of a device.

    python scripts/bench/kernels/loss_memory.py [PART OF A NAME ...] [--out FILE]

Two layers of Llama 3.2 1B in sequences of 4,096, `remat: dots`, all kernels by Pallas, chunks of 1,024 tokens; the
compiler is told nothing of collectives. Needs `pip install 'jaxscale[aot]'`; two compiles a row, one to five minutes
each.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxscale.config.loading import load_config, load_model
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.parallel.compiler_options import SPARSE_CORE
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.training.lowering import lower_step

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
ALL_LOGITS = ROOT / "tests/kernels/all_logits.py"
SEQUENCE, VOCAB = 4096, 128256


@dataclass(frozen=True)
class Row:
    """tokens: of a device. over_fsdp: whether the vocabulary is split over `fsdp` in the loss (`vocab_activation`)."""

    cluster: str
    fsdp: int
    tensor: int
    tokens: int
    over_fsdp: bool = False

    @property
    def name(self) -> str:
        rule = " vocab_activation" if self.over_fsdp else ""
        return f"fsdp={self.fsdp},tensor={self.tensor} {self.tokens}{rule}"

    @property
    def plan(self) -> Plan:
        chosen: dict[str, Any] = {"fsdp": self.fsdp, "tensor": self.tensor, "remat": "dots"}
        rules = {"vocab_activation": "fsdp"} if self.over_fsdp else {}
        told = dict.fromkeys(SPARSE_CORE)
        return Plan(**chosen, rules=rules, kernels="pallas", compiler_options=told)


ROWS = (
    Row("v5p:2x2x4", 2, 8, 16384),
    Row("v5p:2x2x2", 2, 4, 16384),
    Row("v5p:2x2x1", 2, 2, 16384),
    Row("v5p:2x2x1", 2, 2, 8192),
    Row("v5p:2x2x2", 8, 1, 8192),
    Row("v5p:2x2x2", 8, 1, 8192, over_fsdp=True),
    Row("v5p:2x2x1", 2, 2, 16384, over_fsdp=True),
    Row("v5p:2x2x2", 2, 4, 16384, over_fsdp=True),
    Row("v5p:2x2x1", 2, 2, 8192, over_fsdp=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of the names of rows (default: all)")
    parser.add_argument("--out", type=Path, help="file to merge the rows into")
    options = parser.parse_args()
    prepare_process()
    for row in ROWS:
        if not options.names or any(part in row.name for part in options.names):
            measured = measure(row)
            print(json.dumps(measured), flush=True)
            if options.out is not None:
                store(options.out, row.name, measured)


def measure(row: Row) -> dict[str, Any]:
    """Peaks and logits in bytes of a device."""
    llama = load_model(CONFIGS / "models/llama3.2-1b.yaml", ["model.num_layers=2"])[0]
    all_logits = ModelSection(build=f"{ALL_LOGITS}:AllLogits")
    plain, fused = peak(replace(row, over_fsdp=False), all_logits), peak(row, llama)
    logits = 4 * row.tokens * VOCAB // row.tensor
    return {
        **asdict(row),
        "all_logits": plain,
        "fused": fused,
        "logits": logits,
        "removed_of_logits": round((plain - fused) / logits, 3),
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def peak(row: Row, model: ModelSection) -> int:
    rows = row.tokens * row.fsdp // SEQUENCE
    sizes = [f"data.sequence_length={SEQUENCE}", f"training.global_batch={rows}"]
    config = load_config(CONFIGS / "quickstart.yaml", sizes).model_copy(update={"model": model})
    devices = abstract_devices(cluster_by_name(row.cluster))
    compiled = lower_step(config, row.plan, devices).compile()
    memory: Any = compiled.memory_analysis()
    return int(memory.peak_memory_in_bytes)


def store(path: Path, name: str, measured: dict[str, Any]) -> None:
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stored | {name: measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
