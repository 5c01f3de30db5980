"""The tokenizer of a GGUF file as a tokenizer.json, where it is a byte-level BPE with a known way to split text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxscale.data.tokenizers import FILE_NAME
from jaxscale.errors import UserError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# As published; Qwen's takes digits one by one.
_PATTERNS = {"llama-bpe": _LLAMA3, "qwen2": _LLAMA3.replace("{1,3}", "")}
_BYTE_LEVEL = ("gpt-2", "smollm")
_CONTROL, _USER_DEFINED = 3, 4


def read_tokenizer(path: Path, fields: Mapping[str, Any], given: str | None) -> bytes:
    """The text of a tokenizer.json: the one that is given, or the file's own.

    Raises UserError where neither can be read.
    """
    if given is not None:
        return _given(Path(given))
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in {*_PATTERNS, *_BYTE_LEVEL}:
        raise UserError(
            f"the tokenizer of {path} ({kind}, {pre}) cannot be rebuilt as a {FILE_NAME}: give that of the original "
            "model with --tokenizer FILE"
        )
    return _rebuilt(fields, str(pre)).encode()


def _given(path: Path) -> bytes:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no tokenizer {file}")
    return file.read_bytes()


def _rebuilt(fields: Mapping[str, Any], pre: str) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens = list(fields["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    engine = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    engine.pre_tokenizer = _pre_tokenizer(pre)
    engine.decoder = decoders.ByteLevel()
    pairs = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in pairs if kind in {_CONTROL, _USER_DEFINED}]
    engine.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return str(engine.to_str())


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    alone = pre in _BYTE_LEVEL
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=alone)
    if pre == "gpt-2":
        return bytes_
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    split = pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated")
    return pre_tokenizers.Sequence([split, bytes_])
