"""The tokenizer of a GGUF file as a tokenizer.json: byte-level BPE with a known split of text, or SentencePiece's."""

from collections.abc import Mapping, Sequence
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
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_TOKENS, _SCORES, _KINDS = (f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
_UNKNOWN, _START = "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.bos_token_id"
_ADDS_START = "tokenizer.ggml.add_bos_token"
_SPACE = "\u2581"


def read_tokenizer(path: Path, fields: Mapping[str, Any], given: str | None) -> bytes:
    """The text of a tokenizer.json: the one that is given, or the file's own.

    Raises UserError where neither can be read.
    """
    if given is not None:
        return _given(Path(given))
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind == "llama" and {_SCORES, _KINDS} <= fields.keys():
        return _sentencepiece(fields).encode()
    if kind == "gpt2" and pre in {*_PATTERNS, *_BYTE_LEVEL}:
        return _byte_level(fields, str(pre)).encode()
    raise UserError(
        f"the tokenizer of {path} ({kind}, {pre}) cannot be rebuilt as a {FILE_NAME}: give that of the original model "
        "with --tokenizer FILE"
    )


def _given(path: Path) -> bytes:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no tokenizer {file}")
    return file.read_bytes()


def _byte_level(fields: Mapping[str, Any], pre: str) -> str:
    from tokenizers import Tokenizer, decoders, models

    tokens = list(fields[_TOKENS])
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    engine = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    engine.pre_tokenizer = _pre_tokenizer(pre)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(_added(fields, {_CONTROL, _USER_DEFINED}, special=True))
    if fields.get(_ADDS_START, False):
        engine.post_processor = _after_start(fields)
    return str(engine.to_str())


def _sentencepiece(fields: Mapping[str, Any]) -> str:
    """Its BPE joins the neighbors whose union scores highest: merges in the order of the scores of what they make."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    ids = {token: id_ for id_, token in enumerate(fields[_TOKENS])}
    unknown = next(token for token, id_ in ids.items() if id_ == fields.get(_UNKNOWN, 0))
    merges = _merges(ids, fields[_SCORES], fields[_KINDS])
    engine = Tokenizer(
        models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaced: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undone: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        spaced, undone = (
            [normalizers.Prepend(_SPACE), *spaced],
            [*undone, decoders.Strip(" ", 1, 0)],
        )
    engine.normalizer, engine.decoder = normalizers.Sequence(spaced), decoders.Sequence(undone)
    engine.add_special_tokens(_added(fields, {_CONTROL}, special=True))
    engine.add_tokens(_added(fields, {_USER_DEFINED}, special=False))
    if fields.get(_ADDS_START, True):
        engine.post_processor = _after_start(fields)
    return str(engine.to_str())


def _after_start(fields: Mapping[str, Any]) -> Any:
    """Puts the token before a text that stands for its beginning."""
    from tokenizers import processors

    start = int(fields.get(_START, 1))
    name = fields[_TOKENS][start]
    return processors.TemplateProcessing(
        single=[name, "$A"], pair=[name, "$A", f"{name}:1", "$B:1"], special_tokens=[(name, start)]
    )


def _merges(
    ids: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Of every normal token the pairs of tokens that make it, those of the best first."""
    normal = [token for token, id_ in ids.items() if kinds[id_] == _NORMAL]
    ranked = sorted(normal, key=lambda token: -scores[ids[token]])
    return [
        (token[:at], token[at:])
        for token in ranked
        for at in range(len(token) - 1, 0, -1)
        if token[:at] in ids and token[at:] in ids
    ]


def _added(fields: Mapping[str, Any], kinds: set[int], *, special: bool) -> list[Any]:
    from tokenizers import AddedToken

    pairs = zip(fields[_TOKENS], fields[_KINDS], strict=True)
    chosen = (token for token, kind in pairs if kind in kinds)
    return [AddedToken(token, special=special, normalized=False) for token in chosen]


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
