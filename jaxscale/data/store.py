"""Tokens on disk: two arrays, a copy of the tokenizer, and a manifest that says what they hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from jaxscale.data.arrays import ArrayWriter, hash_array, open_array
from jaxscale.data.manifest import FILE_NAME as MANIFEST
from jaxscale.data.manifest import Manifest, read_manifest
from jaxscale.data.tokenizers import BYTES, Tokenizer, restore_tokenizer
from jaxscale.data.tokenizers import FILE_NAME as TOKENIZER
from jaxscale.errors import UserError

if TYPE_CHECKING:
    import tensorstore as ts

ARRAYS = ("tokens", "document_offsets")


@dataclass(frozen=True)
class Store:
    """A finished store: documents one after the other, each ended by the end-of-document token."""

    path: str
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Raises UserError when there is no finished store, or its arrays are not as it says."""
        root = str(path).rstrip("/")
        store = cls(root, read_manifest(root))
        if problems := list(_shape_problems(store)):
            raise UserError(f"the store {path} is damaged: {problems[0]}; prepare it again")
        return store

    @property
    def name(self) -> str:
        return "/".join(self.path.split("/")[-2:])

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @property
    def eod_id(self) -> int:
        return self.manifest.tokenizer.eod_id

    @cached_property
    def tokens(self) -> "ts.TensorStore":
        return open_array(f"{self.path}/tokens")

    @cached_property
    def _offsets(self) -> "ts.TensorStore":
        return open_array(f"{self.path}/document_offsets")

    @property
    def document_offsets(self) -> Int64[np.ndarray, "documents+1"]:
        """Where each document starts and, last, the number of tokens. Reads the whole array."""
        return np.asarray(self._offsets.read().result())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1, as stored (uint16 or uint32)."""
        return self.read_many([(start, stop)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Several ranges at once, read concurrently.

        Raises IndexError outside the store, UserError where the store is damaged.
        """
        for start, stop in ranges:
            if not 0 <= start <= stop <= self.num_tokens:
                raise IndexError(f"tokens {start}..{stop} of a store that has {self.num_tokens}")
        reads = [self.tokens[start:stop].read() for start, stop in ranges]
        try:
            return [np.asarray(read.result()) for read in reads]
        except ValueError as error:
            raise UserError(
                f"the store {self.path} is damaged ({_brief(error)}): prepare it again"
            ) from error

    def document_at(self, token: int) -> int:
        """The document that holds a token: bisection, without reading all the offsets."""
        low, high = 0, self.manifest.num_documents
        while high - low > 1:
            middle = (low + high) // 2
            starts_before = int(self._offsets[middle].read().result()) <= token
            low, high = (middle, high) if starts_before else (low, middle)
        return low

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store, from the copy inside it.

        Raises UserError when that copy is missing or was changed.
        """
        record = self.manifest.tokenizer
        spec = record.spec if record.spec == BYTES else f"{self.path}/{record.spec}"
        tokenizer = restore_tokenizer(spec, record.eod_id)
        check_tokenizer(self, tokenizer)
        return tokenizer

    def verify(self) -> list[str]:
        """Reads everything; one sentence for each part that is not what the manifest says."""
        return [
            *_manifest_problems(self),
            *_shape_problems(self),
            *_content_problems(self),
            *_tokenizer_problems(self),
        ]


class StoreWriter:
    """Writes a store's arrays from front to back. The manifest is for the caller to write, last."""

    def __init__(self, path: Path, num_tokens: int, num_documents: int, vocab_size: int) -> None:
        self._tokens = ArrayWriter(path / "tokens", num_tokens, token_dtype(vocab_size))
        self._offsets = ArrayWriter(path / "document_offsets", num_documents + 1, "int64")
        self._offsets.append(np.zeros(1, np.int64))
        self._end = 0

    def append(self, tokens: np.ndarray, document_ends: Int64[np.ndarray, "documents"]) -> None:
        """Adds tokens, and where documents end, counted from the first of these tokens."""
        self._tokens.append(tokens)
        self._offsets.append(document_ends + self._end)
        self._end += len(tokens)

    def finish(self) -> dict[str, str]:
        """Writes what is left; the checksums for the manifest."""
        return dict(zip(ARRAYS, (self._tokens.finish(), self._offsets.finish()), strict=True))


def token_dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def check_vocab(store: Store, model_vocab_size: int) -> None:
    """Raises UserError when the store has ids that the model has no embedding for."""
    vocab_size = store.manifest.tokenizer.vocab_size
    if vocab_size > model_vocab_size:
        raise UserError(
            f"the tokenizer of {store.path} has {vocab_size} tokens but the model's vocabulary is "
            f"{model_vocab_size}: set the model's vocab_size to at least {vocab_size}"
        )


def check_tokenizer(store: Store, tokenizer: Tokenizer) -> None:
    """Raises UserError when the store was made with another tokenizer."""
    check_fingerprint(store.path, store.manifest, tokenizer.fingerprint)


def check_fingerprint(path: str, manifest: Manifest, fingerprint: str) -> None:
    """`check_tokenizer` for a store that is not open."""
    recorded = manifest.tokenizer.fingerprint
    if recorded != fingerprint:
        raise UserError(
            f"the store {path} was prepared with another tokenizer (fingerprint {recorded[:12]}) than "
            f"this one ({fingerprint[:12]}): set data.tokenizer to the tokenizer of the store, or prepare "
            f"the text again into another folder"
        )


def _manifest_problems(store: Store) -> Iterator[str]:
    try:
        on_disk = read_manifest(store.path)
    except UserError as error:
        yield f"{MANIFEST}: {error}"
        return
    if on_disk != store.manifest:
        yield f"{MANIFEST}: another store was written here since this one was opened"


def _shape_problems(store: Store) -> Iterator[str]:
    record = store.manifest
    expected = {
        "tokens": (record.num_tokens, token_dtype(record.tokenizer.vocab_size)),
        "document_offsets": (record.num_documents + 1, "int64"),
    }
    for name, wanted in expected.items():
        try:
            array = open_array(f"{store.path}/{name}")
        except ValueError as error:
            yield f"{name} cannot be opened ({_brief(error)})"
            continue
        actual = (array.shape[0], array.dtype.name)
        if actual != wanted:
            yield f"{name} has length and type {actual}, the manifest says {wanted}"


def _content_problems(store: Store) -> Iterator[str]:
    for name, expected in store.manifest.checksums.items():
        try:
            actual = hash_array(f"{store.path}/{name}")
        except ValueError as error:
            yield f"{name} cannot be read ({_brief(error)})"
            continue
        if actual != expected:
            yield f"{name} has SHA-256 {actual[:16]}, the manifest says {expected[:16]}"


def _tokenizer_problems(store: Store) -> Iterator[str]:
    try:
        store.tokenizer()
    except UserError as error:
        yield f"{TOKENIZER}: {error}"


def _brief(error: ValueError) -> str:
    return str(error).partition(" [")[0]
