"""A model as StableHLO programs that need nothing of ours: the forward pass and the cached decode step.

`jax.export` artifacts (https://docs.jax.dev/en/latest/export/export.html) lowered for CPU, TPU and CUDA at once, with
the weights beside them as safetensors: anything with a PJRT plugin can run them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, Int

from jaxscale.checkpoint.places import Place
from jaxscale.errors import UserError
from jaxscale.interop.export import export_tensors
from jaxscale.interop.export_hf import StoredModel, open_model
from jaxscale.interop.export_job import Exported, ExportJob, ExportOptions
from jaxscale.interop.hf_tokenizer import write_hf_tokenizer
from jaxscale.interop.journal import write_atomically
from jaxscale.interop.stablehlo_files import readme, scripts
from jaxscale.interop.tensor_source import TensorSource, as_they_are, check_complete, weights_part
from jaxscale.models.build import model_builder
from jaxscale.models.cache import KVCache
from jaxscale.models.context import ForwardContext, use_forward_context
from jaxscale.models.description import Blueprint, Params, bind, blueprint
from jaxscale.models.language_model import LanguageModel
from jaxscale.models.layers import softcap
from jaxscale.models.transformer import Transformer

PLATFORMS = ("cpu", "tpu", "cuda")
FORWARD_FILE, DECODE_FILE = "forward.jax", "decode.jax"
_DEFAULTS = ExportOptions()
Logits = Float[Array, "batch sequence vocab"]


@dataclass(frozen=True)
class Programs:
    """Exported functions of one model. decode: None for a module of the user's own, which keeps no cache.

    limits: of symbolic sizes (`sequence <= 1024`).
    """

    forward: jax_export.Exported
    decode: jax_export.Exported | None
    limits: tuple[str, ...] = ()


def export_stablehlo(
    checkpoint: Place | str,
    out: Place | str,
    *,
    step: int | None = None,
    dtype: np.dtype[Any] | None = None,
    part: str | None = None,
    sequence_length: int | None = None,
    options: ExportOptions = _DEFAULTS,
) -> Exported:
    """Write programs, weights, scripts and `README.md`; run it again to go on after an interruption.

    Arguments are those of `export_hf`. dtype: of the weights, and with it of the computation (default: as stored).
    sequence_length: tokens of a row in the forward pass; None takes any length (see `make_programs`).
    Raises UserError where the input is wrong, or for a module that cannot be traced with a length that is not known.
    """
    model = open_model(checkpoint, step)
    chosen = weights_part(model.stored, part)
    check_complete(model.stored, chosen, model.description)
    source = TensorSource(model.stored, chosen, as_they_are(model.description), dtype)
    dtypes = {info.name: info.dtype for info in source.infos}
    programs = make_programs(blueprint(model_builder(model.section)), dtypes, sequence_length)

    def side_files(target: Path) -> None:
        _write_side_files(target, model, programs, sequence_length)

    identity = json.dumps(["stablehlo", jax.__version__, sequence_length])
    return export_tensors(ExportJob(source, options, identity, side_files), out)


def make_programs(
    model: Blueprint, dtypes: dict[str, np.dtype[Any]], sequence_length: int | None = None
) -> Programs:
    """The programs of a model whose parameters have these dtypes, without any array.

    Sizes of the batch, the cache and new tokens are symbolic. So is the sequence of the forward pass where no length is
    given; its attention then forms all scores at once, since a loop over blocks of queries needs their number.
    """
    params = {
        path: jax.ShapeDtypeStruct(spec.shape, dtypes[path])
        for path, spec in model.description.items()
    }
    attention = "reference" if sequence_length is None else "xla"
    # One program for every platform has the kernels of none.
    kernels = {"attention": attention, "matmul": "xla", "glu": "xla"}
    with use_forward_context(ForwardContext(kernels=kernels)):
        try:
            forward = _export_forward(model, params, sequence_length)
            limits = (*_limit(model, "sequence"), *_limit(model, "new"))
            return Programs(forward, _export_decode(model, params), limits)
        except jax.errors.InconclusiveDimensionOperation as error:
            raise UserError(
                "the model's code depends on the length of a row, so it cannot be exported for any: give "
                f"--sequence-length ({str(error).splitlines()[0]})"
            ) from error


def _export_forward(
    model: Blueprint, params: dict[str, jax.ShapeDtypeStruct], length: int | None
) -> jax_export.Exported:
    def forward(params: Params, tokens: Int[Array, "batch sequence"]) -> Logits:
        return _logits(bind(model, params), tokens)

    limit = _limit(model, "sequence")
    batch, sequence = jax_export.symbolic_shape("batch, sequence", constraints=limit)
    tokens = jax.ShapeDtypeStruct((batch, sequence if length is None else length), jnp.int32)
    return _exported(forward, params, tokens)


def _export_decode(
    model: Blueprint, params: dict[str, jax.ShapeDtypeStruct]
) -> jax_export.Exported | None:
    def decode(
        params: Params,
        tokens: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        last: Int[Array, " batch"],
        key: Float[Array, "layers batch length kv_heads head_dim"],
        value: Float[Array, "layers batch length kv_heads head_dim"],
    ) -> tuple[Float[Array, "batch vocab"], jax.Array, jax.Array]:
        module = bind(model, params)
        assert isinstance(module, Transformer)
        hidden, cache = module.extend(tokens, positions, KVCache(key, value))
        chosen = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return module.logits(chosen)[:, 0], cache.key, cache.value

    module = abstract_module(model)
    if not isinstance(module, Transformer):
        return None
    limit = _limit(model, "new")
    batch, new, length = jax_export.symbolic_shape("batch, new, length", constraints=limit)
    arch, dtype = module.arch, params["embedding/table"].dtype
    shape = (arch.num_layers, batch, length, arch.num_kv_heads, arch.head_dim)
    cache = jax.ShapeDtypeStruct(shape, dtype)
    tokens = jax.ShapeDtypeStruct((batch, new), jnp.int32)
    last = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return _exported(decode, params, tokens, tokens, last, cache, cache)


def abstract_module(model: Blueprint) -> Any:
    """The module with shapes for parameters: to ask it what it is."""
    params: Any = {
        path: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        for path, spec in model.description.items()
    }
    return bind(model, params)


def _logits(module: Any, tokens: jax.Array) -> Logits:
    if isinstance(module, Transformer):
        return module(tokens)
    if not isinstance(module, LanguageModel):
        raise UserError(
            f"{type(module).__name__} is no language model: it has no hidden() and output_table()"
        )
    plain = jnp.einsum(
        "bse,ve->bsv",
        module.hidden(tokens),
        module.output_table(),
        preferred_element_type=jnp.float32,
    )
    return softcap(plain, module.logit_softcap)


def _limit(model: Blueprint, name: str) -> list[str]:
    """Learned positions end somewhere."""
    module = abstract_module(model)
    learned = isinstance(module, Transformer) and module.arch.positions == "learned"
    return [f"{name} <= {module.arch.max_positions}"] if learned else []


def _exported(function: Callable[..., Any], *arguments: Any) -> jax_export.Exported:
    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


def _write_side_files(
    out: Path, model: StoredModel, programs: Programs, sequence_length: int | None
) -> None:
    (out / FORWARD_FILE).write_bytes(programs.forward.serialize())
    if programs.decode is not None:
        (out / DECODE_FILE).write_bytes(programs.decode.serialize())
    if model.tokenizer is not None:
        write_hf_tokenizer(model.tokenizer, out, model.section.max_positions)
    for name, text in scripts(cached=programs.decode is not None).items():
        write_atomically(out / name, text)
    card = readme(
        model.metadata["config"]["name"],
        forward=programs.forward,
        decode=programs.decode,
        limits=programs.limits,
        sequence_length=sequence_length,
    )
    write_atomically(out / "README.md", card)
