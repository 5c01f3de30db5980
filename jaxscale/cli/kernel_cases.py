"""Which products of which models the kernel commands measure."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jaxscale.config.loading import load_model
from jaxscale.errors import UserError
from jaxscale.kernels.cases import Case
from jaxscale.kernels.glu import api as glu
from jaxscale.kernels.glu.cases import cases as glu_cases
from jaxscale.kernels.matmul import api as matmul
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.models.architecture import Architecture
from jaxscale.models.families import resolve

Maker = Callable[[Architecture, int, str], Iterator[Case]]


def _products(arch: Architecture, rows: int, dtype: str) -> Iterator[Case]:
    """Those of attention and of the MLP; keys and values have one shape."""
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    embed, mlp = arch.embed_dim, arch.mlp_dim
    sizes = [(embed, queries), (embed, keys), (queries, embed), (embed, mlp), (mlp, embed)]
    for inward, outward in dict.fromkeys(sizes):
        yield from matmul_cases(rows, inward, outward, dtype)


def _gated(arch: Architecture, rows: int, dtype: str) -> Iterator[Case]:
    if arch.gated_mlp:
        yield from glu_cases(rows, arch.embed_dim, arch.mlp_dim, dtype, arch.activation)


OPS: Mapping[str, Maker] = {"matmul": _products, "glu": _gated}
TABLES: Mapping[str, Path] = {"matmul": matmul.TUNING, "glu": glu.TUNING}


def cases_of(models: list[Path], op: str, rows: int, dtype: str) -> list[Case]:
    """Every distinct call of the models' layers on one device. Raises UserError for an op that is not measured."""
    if op and op not in OPS:
        raise UserError(f"no op {op!r} is measured here: there are {', '.join(OPS)}")
    makers = [OPS[op]] if op else list(OPS.values())
    found: dict[str, Case] = {}
    for model in models:
        arch = resolve(load_model(model, [])[0])
        for make in makers:
            for case in make(arch, rows, dtype):
                found.setdefault(case.name, case)
    return list(found.values())
