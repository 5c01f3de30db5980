"""Text to token ids and back."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Int64

from jaxscale.errors import UserError

if TYPE_CHECKING:
    import tokenizers

BYTES = "bytes"
FILE_NAME = "tokenizer.json"
END_OF_DOCUMENT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


class Tokenizer(Protocol):
    """What the rest of jaxscale needs from a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def eod_id(self) -> int:
        """The token that ends a document."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides which ids a text gets."""

    @property
    def start_ids(self) -> list[int]:
        """What goes before a text that a model is to continue, as the tokenizer itself has it; mostly nothing."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing is added, and special names in the text are text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens included by name; broken UTF-8 becomes U+FFFD."""

    def token_byte_lengths(self) -> Int64[np.ndarray, "vocab"] | None:
        """UTF-8 bytes of each token, 0 for specials; None when tokens are not bytes."""

    def save(self, path: Path) -> None:
        """Writes what `load_tokenizer(str(path))` needs to the folder; nothing for bytes."""


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0..255 are the UTF-8 bytes, 256 ends a document."""

    vocab_size: int = 257
    eod_id: int = 256

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"jaxscale bytes 1").hexdigest()

    @property
    def start_ids(self) -> list[int]:
        return []

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        marker = b"<|endoftext|>"
        pieces = (marker if id_ == self.eod_id else bytes([id_]) for id_ in ids)
        return b"".join(pieces).decode(errors="replace")

    def token_byte_lengths(self) -> Int64[np.ndarray, "vocab"]:
        lengths = np.ones(self.vocab_size, np.int64)
        lengths[self.eod_id] = 0
        return lengths

    def save(self, path: Path) -> None:
        """Nothing to write: the spec "bytes" says it all."""


@dataclass(frozen=True)
class FileTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library.

    `definition` is the JSON text, kept so that the fingerprint and a saved copy do not depend on
    the version of that library.
    """

    definition: str
    eod_id: int

    @cached_property
    def fingerprint(self) -> str:
        content = {"definition": json.loads(self.definition), "eod_id": self.eod_id}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def engine(self) -> "tokenizers.Tokenizer":
        return _engine(self.definition)

    @cached_property
    def vocab_size(self) -> int:
        return max(self.engine.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def start_ids(self) -> list[int]:
        found = self.engine.encode("a", add_special_tokens=True)
        before = takewhile(itemgetter(1), zip(found.ids, found.special_tokens_mask, strict=True))
        return [id_ for id_, _ in before]

    def encode(self, text: str) -> list[int]:
        return list(self.engine.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.engine.decode(list(ids), skip_special_tokens=False))

    def token_byte_lengths(self) -> Int64[np.ndarray, "vocab"] | None:
        if not _is_byte_level(json.loads(self.definition)):
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, id_ in self.engine.get_vocab(with_added_tokens=False).items():
            # Byte-level vocabularies write each byte as one printable character.
            lengths[id_] = len(token)
        for id_, added in self.engine.get_added_tokens_decoder().items():
            lengths[id_] = 0 if added.special else len(added.content.encode())
        return lengths

    def save(self, path: Path) -> None:
        (path / FILE_NAME).write_text(self.definition, encoding="utf-8")


def load_tokenizer(spec: str, eod: str | int | None = None) -> Tokenizer:
    """The tokenizer that `spec` names: "bytes", a tokenizer.json, or a folder that holds one.

    `eod` is the end-of-document token, by name or id; by default the first of
    END_OF_DOCUMENT_NAMES that the file has. Raises UserError when there is no such file or token.
    """
    if spec == BYTES:
        return ByteTokenizer()
    name, definition = _read_definition(spec)
    return _from_definition(definition, name, eod)


def restore_tokenizer(spec: str, eod_id: int) -> Tokenizer:
    """A saved tokenizer whose end of document is known; nothing is parsed before it is used."""
    if spec == BYTES:
        return ByteTokenizer()
    return FileTokenizer(_read_definition(spec)[1], eod_id)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens, the same for the same texts in order.

    Id 0 is `<|endoftext|>`. A small text may run out of pairs to merge before `vocab_size`.
    Raises UserError when `vocab_size` does not hold the 256 bytes and the end of document.
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UserError(
            f"a byte-level vocabulary needs at least 257 tokens (256 bytes and the end of "
            f"document), {vocab_size} were asked for"
        )
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT_NAMES[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return _from_definition(engine.to_str(), "the trained tokenizer", None)


@lru_cache(maxsize=4)
def _engine(definition: str) -> "tokenizers.Tokenizer":
    """Parsed once a process: big vocabularies take a second, and workers get one for each file."""
    from tokenizers import Tokenizer as Engine

    engine = Engine.from_str(definition)
    engine.no_truncation()
    engine.no_padding()
    # A document that spells "<|endoftext|>" must not be able to end itself.
    engine.encode_special_tokens = True
    return engine


def _read_definition(spec: str) -> tuple[str, str]:
    """Name and contents of the file that a path or URL means."""
    import fsspec

    system, path = fsspec.core.url_to_fs(spec)
    file = f"{path.rstrip('/')}/{FILE_NAME}" if system.isdir(path) else path
    if not system.isfile(file):
        raise UserError(
            f'there is no tokenizer at {spec!r}: give "{BYTES}", a {FILE_NAME} file, or a folder '
            f"that holds one"
        )
    try:
        definition = system.cat_file(file).decode()
        content = json.loads(definition)
    except ValueError as error:  # Not UTF-8, or not JSON.
        raise UserError(f"{file} is not a tokenizer: {error}") from error
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{file} is not a tokenizer: it is JSON without a 'model'")
    return file, definition


def _from_definition(definition: str, name: str, eod: str | int | None) -> FileTokenizer:
    vocab = _engine(definition).get_vocab(with_added_tokens=True)
    return FileTokenizer(definition, _find_eod(vocab, name, eod))


def _find_eod(vocab: dict[str, int], name: str, eod: str | int | None) -> int:
    if isinstance(eod, int):
        if eod not in vocab.values():
            raise UserError(f"{name} has no token with id {eod} (ids go up to {len(vocab) - 1})")
        return eod
    wanted = END_OF_DOCUMENT_NAMES if eod is None else (eod,)
    found = [vocab[token] for token in wanted if token in vocab]
    if not found:
        raise UserError(
            f"{name} has none of the end-of-document tokens {', '.join(wanted)}: say which of "
            f"its {len(vocab)} tokens ends a document"
        )
    return found[0]


def _is_byte_level(definition: dict[str, Any]) -> bool:
    decoder = definition.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)
