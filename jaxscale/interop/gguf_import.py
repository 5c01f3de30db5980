"""A GGUF file (llama.cpp), opened: read through the `gguf` library and dequantized."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.checkpoint.stored import Box
from jaxscale.data.tokenizers import FILE_NAME
from jaxscale.errors import UserError
from jaxscale.interop.gguf_config import read_config
from jaxscale.interop.gguf_tokenizer import read_tokenizer
from jaxscale.interop.hf_config import from_hf_config
from jaxscale.interop.match import match
from jaxscale.interop.names import bind
from jaxscale.interop.open_model import OpenModel
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

if TYPE_CHECKING:
    import gguf

# Names of llama.cpp by those of Hugging Face.
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_DECODER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GEMMA = _DECODER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# family: model_type of Hugging Face. The rest of a layer's name follows these prefixes.
_NAMES = {"gpt2": _GPT2, "gemma2": _GEMMA, "gemma3": _GEMMA}
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file. heads: of llama.cpp's rotation, whose rows lie in another order; 0 elsewhere.

    offset: added to the values. turned: stored as (out, in) where Hugging Face has (in, out).
    """

    name: str
    stored: "gguf.ReaderTensor"
    heads: int = 0
    offset: float = 0.0
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        stored = tuple(int(size) for size in reversed(self.stored.shape))
        return stored[::-1] if self.turned else stored

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """A box, dequantized to float32: whole rows of it are, and rows of whole heads."""
        from gguf.quants import dequantize

        rows, columns = (box[-1], box[:-1]) if self.turned else (box[0], box[1:])
        try:
            values = dequantize(self.stored.data[rows], self.stored.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.stored.name}: {error}: take a file of another quantization"
            ) from error
        values = values.reshape(rows.stop - rows.start, *values.shape[1:])
        if self.heads:
            values = self._in_halves(values)
        values = values[(slice(None), *columns)] + np.float32(self.offset)
        return values.T if self.turned else values

    def _in_halves(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pairs of a head lie side by side in llama.cpp, and half a head apart here."""
        width = self.shape[0] // self.heads
        pairs = rows.reshape(-1, width // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)


def open_gguf(path: Path, tokenizer: str | None = None) -> OpenModel:
    """A file of llama, mistral, qwen2, qwen3, gemma2, gemma3 or gpt2, whatever its quantization.

    tokenizer: a tokenizer.json or its directory, where the file's own cannot be rebuilt.
    Raises UserError without the `gguf` library, and for files that are damaged or of another model.
    """
    reader = _open(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    raw = {tensor.name: tensor for tensor in reader.tensors}
    config = read_config(path, fields, raw)
    found = from_hf_config(config, str(path), tensors=())
    model = blueprint(model_builder(found.section))
    names = bind(found.family.names, model.description)
    stored = [_tensor(one, fields) for one in raw.values() if one.name != _FREQUENCIES]
    tensors = match(names, {one.name: one for one in stored}, str(path))

    def tokenizer_files() -> Mapping[str, bytes]:
        return {FILE_NAME: read_tokenizer(path, fields, tokenizer)}

    def read_theirs(name: str, box: Box) -> np.ndarray[Any, Any]:
        return tensors[name].read(box)

    kinds = Counter(one.tensor_type.name for one in raw.values())
    quantized = sorted(kind for kind in kinds if kind not in {"F32", "F16", "BF16"})
    facts = {
        "from": str(path),
        "format": "gguf",
        "family": found.family.model_type,
        "dtypes": dict(kinds),
        "dequantized_from": quantized,
    }
    notes = [f"weights were quantized ({', '.join(quantized)}) and are only near the original ones"]
    return OpenModel(
        found.section,
        model,
        names,
        read_theirs,
        tokenizer_files,
        facts,
        found.notes + tuple(notes if quantized else []),
    )


def _open(path: Path) -> "gguf.GGUFReader":
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "reading GGUF needs the gguf library: pip install 'jaxscale[gguf]'"
        ) from error
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole GGUF file: {error}. Download it again") from error


def _tensor(stored: "gguf.ReaderTensor", fields: Mapping[str, Any]) -> GgufTensor:
    kind = str(fields["general.architecture"])
    table = _NAMES.get(kind, _DECODER)
    layer, short, ending = _split(stored.name)
    known = table.get(short)
    if known is None:
        return GgufTensor(stored.name, stored)
    prefix = (
        "" if layer is None else f"{'transformer.h' if kind == 'gpt2' else 'model.layers'}.{layer}."
    )
    name = f"{prefix}{known}.{ending}"
    if kind == "llama" and short in {"attn_q", "attn_k"}:
        key = "head_count" if short == "attn_q" else "head_count_kv"
        return GgufTensor(name, stored, heads=int(fields[f"{kind}.attention.{key}"]))
    if kind in {"gemma2", "gemma3"} and short.endswith("norm"):
        return GgufTensor(name, stored, offset=-1.0)
    is_turned = kind == "gpt2" and layer is not None and len(stored.shape) == 2
    return GgufTensor(name, stored, turned=is_turned)


def _split(name: str) -> tuple[int | None, str, str]:
    """`blk.3.attn_q.weight` as (3, `attn_q`, `weight`)."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None, name, ""
    return (None if found[1] is None else int(found[1])), found[2], found[3]
