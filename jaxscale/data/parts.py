"""One source file, tokenized: the unit of work of `prepare`, and what a rerun finds again.

Runs in worker processes: nothing here imports JAX.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from jaxscale.data.manifest import FORMAT_VERSION, Options, SourceRecord
from jaxscale.data.sources import SourceFile, hash_file, read_documents
from jaxscale.data.splits import SPLITS, split_text
from jaxscale.data.store import token_dtype
from jaxscale.data.tokenizers import Tokenizer

SUMMARY = "part.json"
BATCH_CHARACTERS = 1 << 20
READ_TOKENS = 1 << 22


@dataclass(frozen=True)
class Count:
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.text_bytes + other.text_bytes,
        )


@dataclass(frozen=True)
class Job:
    """Everything that decides the tokens of a file, and the folder where parts are kept."""

    file: SourceFile
    record: SourceRecord
    options: Options
    split_by: str
    tokenizer: Tokenizer
    folder: Path

    @property
    def part(self) -> Path:
        """Where the finished part is: the name changes with anything that changes the tokens."""
        inputs = [
            FORMAT_VERSION,
            (self.record.sha256, self.record.size, self.file.suffix),
            asdict(self.options),
            self.split_by,
            self.tokenizer.fingerprint,
        ]
        return self.folder / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Part:
    """A finished part: what it holds of each split."""

    path: Path
    dtype: str
    counts: dict[str, Count]

    def read(self, split: str) -> Iterator[tuple[np.ndarray, Int64[np.ndarray, "documents"]]]:
        """Tokens in blocks, each with the ends of the documents that end in it."""
        ends = np.fromfile(self.path / f"{split}.ends", np.int64)
        with (self.path / f"{split}.tokens").open("rb") as file:
            start = 0
            while len(tokens := np.fromfile(file, self.dtype, READ_TOKENS)):
                first, last = np.searchsorted(ends, [start, start + len(tokens)], side="right")
                yield tokens, ends[first:last] - start
                start += len(tokens)


def record_source(file: SourceFile) -> SourceRecord:
    """Reads the whole file once, for its size and hash."""
    return SourceRecord(file.name, *hash_file(file))


def make_part(job: Job) -> Part:
    """Tokenizes the file, or finds it done. The part appears under its name only when whole."""
    dtype = token_dtype(job.tokenizer.vocab_size)
    if not (job.part / SUMMARY).is_file():
        work = Path(tempfile.mkdtemp(dir=job.folder, prefix="unfinished-"))
        counts = _write_part(job, work, dtype)
        summary = {split: asdict(count) for split, count in counts.items()}
        (work / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
        _publish(work, job.part)
    counts = json.loads((job.part / SUMMARY).read_text(encoding="utf-8"))
    return Part(job.part, dtype, {split: Count(**count) for split, count in counts.items()})


def _publish(work: Path, part: Path) -> None:
    try:
        work.rename(part)
    except OSError:
        # Two files with the same contents are the same part: another worker was first.
        if not (part / SUMMARY).is_file():
            raise
        shutil.rmtree(work)


def _write_part(job: Job, work: Path, dtype: str) -> dict[str, Count]:
    counts = dict.fromkeys(SPLITS, Count())
    with ExitStack() as stack:
        files = {
            (split, kind): stack.enter_context((work / f"{split}.{kind}").open("wb"))
            for split in SPLITS
            for kind in ("tokens", "ends")
        }
        for batch in _batches(job):
            for split in SPLITS:
                texts = [pieces[split] for pieces in batch if split in pieces]
                output = files[split, "tokens"], files[split, "ends"]
                counts[split] += _write_texts(texts, job.tokenizer, counts[split], dtype, output)
    return counts


def _write_texts(
    texts: list[str],
    tokenizer: Tokenizer,
    before: Count,
    dtype: str,
    output: tuple[BinaryIO, BinaryIO],
) -> Count:
    """Appends documents, each ended by the end-of-document token; what was added."""
    if not texts:
        return Count()
    encoded = tokenizer.encode_batch(texts)
    end = np.array([tokenizer.eod_id], dtype)
    tokens = np.concatenate([x for ids in encoded for x in (np.array(ids, dtype), end)])
    ends = before.tokens + np.cumsum([len(ids) + 1 for ids in encoded], dtype=np.int64)
    output[0].write(tokens.tobytes())
    output[1].write(ends.tobytes())
    return Count(len(texts), len(tokens), sum(len(text.encode()) for text in texts))


def _batches(job: Job) -> Iterator[list[dict[str, str]]]:
    """Split documents, about BATCH_CHARACTERS at a time."""
    batch: list[dict[str, str]] = []
    size = 0
    for text in read_documents(job.file, job.options):
        batch.append(split_text(text, job.options.eval_fraction, job.split_by))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch
