"""Which calls of which models the kernel commands measure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config.loading import load_model
from jaxscale.config.model_section import ModelSection
from jaxscale.config.run_sections import TrainingSection
from jaxscale.errors import UserError
from jaxscale.kernels.attention import api as attention
from jaxscale.kernels.attention.cases import cases as attention_cases
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.cases import Case
from jaxscale.kernels.glu import api as glu
from jaxscale.kernels.glu.cases import cases as glu_cases
from jaxscale.kernels.linear_cross_entropy import api as linear_cross_entropy
from jaxscale.kernels.linear_cross_entropy.cases import cases as loss_cases
from jaxscale.kernels.matmul import api as matmul
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.kernels.ragged_matmul import api as ragged_matmul
from jaxscale.kernels.ragged_matmul.cases import cases as ragged_cases
from jaxscale.models.architecture import Architecture
from jaxscale.models.families import resolve

_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Pass:
    """What a device takes at a time. rows: tokens. sequence: tokens of one row of the batch, None for what fits."""

    rows: int
    dtype: str = "bfloat16"
    sequence: int | None = None


@dataclass(frozen=True)
class Op:
    """make: the calls of a model's layers, all of them on one device. table: the folder that `auto` reads."""

    make: Callable[[ModelSection, Pass], Iterator[Case]]
    table: Path


def _products(model: ModelSection, size: Pass) -> Iterator[Case]:
    """Those of attention and of MLPs that every token meets; keys and values have one shape."""
    arch = resolve(model)
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    embed = arch.embed_dim
    sizes = [(embed, queries), (embed, keys), (queries, embed)]
    if model.latent_attention is not None:
        sizes = []
    for mlp in _mlp_widths(model, arch):
        sizes += [(embed, mlp), (mlp, embed)]
    for inward, outward in dict.fromkeys(sizes):
        yield from matmul_cases(size.rows, inward, outward, size.dtype)


def _gated(model: ModelSection, size: Pass) -> Iterator[Case]:
    arch = resolve(model)
    if arch.gated_mlp:
        for mlp in _mlp_widths(model, arch):
            yield from glu_cases(size.rows, arch.embed_dim, mlp, size.dtype, arch.activation)


def _mlp_widths(model: ModelSection, arch: Architecture) -> list[int]:
    """Of MLPs that are not routed."""
    experts = model.experts
    if experts is None:
        return [arch.mlp_dim]
    widths = [experts.shared * experts.mlp_dim] if experts.shared else []
    return [*widths, arch.mlp_dim] if experts.dense_layers else widths


def _routed(model: ModelSection, size: Pass) -> Iterator[Case]:
    experts, embed = model.experts, resolve(model).embed_dim
    if experts is None:
        return
    tokens = size.rows * experts.per_token
    for inward, outward in dict.fromkeys(((embed, experts.mlp_dim), (experts.mlp_dim, embed))):
        yield from ragged_cases(tokens, inward, outward, experts.count, size.dtype)


def _attention(model: ModelSection, size: Pass) -> Iterator[Case]:
    """One call for each kind of layer. Latent attention has no kernel here."""
    if model.latent_attention is not None:
        return
    arch = resolve(model)
    length = _sequence(arch, size)
    heads = arch.num_heads, arch.num_kv_heads, arch.head_dim
    for kind in dict.fromkeys(arch.kinds):
        form = Form(scale=arch.attention_scale, window=kind.window, softcap=arch.attention_softcap)
        yield from attention_cases(size.rows // length, length, *heads, size.dtype, form)


def _loss(model: ModelSection, size: Pass) -> Iterator[Case]:
    """A chunk of the tokens, as long as a run's where it does not say otherwise."""
    arch, chunk = resolve(model), TrainingSection.model_fields["loss_chunk"].default
    yield from loss_cases(min(size.rows, chunk), arch.embed_dim, arch.vocab_size, size.dtype)


def _sequence(arch: Architecture, size: Pass) -> int:
    """Tokens of a row of the batch: as given, else the longest that the model is for and the pass holds."""
    length = size.sequence or min(size.rows, arch.max_positions)
    if size.rows % length:
        below, above = size.rows // length * length, -(-size.rows // length) * length
        near = " or ".join(str(rows) for rows in (below, above) if rows)
        raise UserError(
            f"{size.rows} rows are no whole number of sequences of {length} tokens: --rows {near}, or another "
            "--sequence"
        )
    return length


OPS: Mapping[str, Op] = {
    "matmul": Op(_products, matmul.TUNING),
    "glu": Op(_gated, glu.TUNING),
    "ragged_matmul": Op(_routed, ragged_matmul.TUNING),
    "attention": Op(_attention, attention.TUNING),
    "linear_cross_entropy": Op(_loss, linear_cross_entropy.TUNING),
}


def cases_of_files(arguments: Sequence[str], op: str, size: Pass) -> list[Case]:
    """Every distinct call of one op, or of all, in models given as files, under overrides (`model.mlp_dim=1792`).

    A run's own sequence length is taken where none is given. Raises UserError for an op that is not measured or that
    no model calls, and for sizes that do not fit together.
    """
    overrides = [each for each in arguments if "=" in each and not Path(each).is_file()]
    files = [Path(each) for each in arguments if each not in overrides]
    if size.dtype not in _DTYPES:
        raise UserError(f"--dtype {size.dtype} is not measured: there are {', '.join(_DTYPES)}")
    if not files:
        raise UserError("give the YAML file of a model, for example configs/models/llama3-8b.yaml")
    if op and op not in OPS:
        raise UserError(f"no op {op!r} is measured here: there are {', '.join(OPS)}")
    loaded = [load_model(file, overrides) for file in files]
    found = cases_of([op] if op else list(OPS), loaded, size)
    if not found:
        experts = ": it takes model.experts, as in configs/planned/mixtral-8x7b.yaml"
        why = experts if op == "ragged_matmul" else ""
        raise UserError(f"none of these models calls {op or 'what is measured here'}{why}")
    return found


def cases_of(
    ops: Sequence[str], models: Sequence[tuple[ModelSection, int | None]], size: Pass
) -> list[Case]:
    """Every distinct call of these ops in models, each with the sequence length of its run if it has one."""
    found: dict[str, Case] = {}
    for op in ops:
        for model, length in models:
            here = Pass(size.rows, size.dtype, size.sequence or _within(length, size.rows))
            for case in OPS[op].make(model, here):
                found.setdefault(case.name, case)
    return list(found.values())


def _within(length: int | None, rows: int) -> int | None:
    return None if length is None else min(length, rows)
