"""What is to be exported and how, whatever it is written to."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from isal import isal_zlib

from jaxscale.checkpoint.casting import overflow_message
from jaxscale.checkpoint.integrity import find_problems
from jaxscale.checkpoint.layout import CHECKSUMS_FILE
from jaxscale.errors import UserError
from jaxscale.interop.names import Tensor
from jaxscale.interop.shards import Piece, Shard, pieces, plan_shards
from jaxscale.interop.tensor_source import TensorSource

EXPORT_FILE = "export.json"
# In the hands of each thread. Matrices that are stored turned are read in runs as long as a piece has rows: whole ones
# are read from end to end.
PIECE_BYTES = 64 * 2**20
# One of them waits for the disk while the others convert, on two cores.
_THREADS = 3
Report = Callable[[int], None]
# CRC-32 of pieces, by where they begin in their file.
Sums = Mapping[int, int]


def _silent(_num_bytes: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to write.

    max_shard_bytes: most bytes of tensors in one file; a larger tensor has one of its own.
    piece_bytes: bytes of the target that a thread makes at once.
    process, num_processes: this process's part of the work, for several that share the target.
    overflow: what to do about finite values that become infinite in the target's dtype.
    integrity: whether to check the checkpoint's own sums, before anything counts as written.
    report: told the bytes of each piece written.
    """

    max_shard_bytes: int = 5 * 10**9
    piece_bytes: int = PIECE_BYTES
    process: int = 0
    num_processes: int = 1
    overflow: Literal["refuse", "allow"] = "refuse"
    integrity: Literal["verify", "skip"] = "verify"
    num_threads: int | None = None
    report: Report = _silent

    @property
    def threads(self) -> int:
        return self.num_threads or _THREADS


@dataclass(frozen=True)
class Exported:
    """What there is now. complete: False while other processes have not written their parts.

    num_bytes: of all files. skipped: pieces of this process's part that an earlier run had finished.
    """

    out: str
    files: tuple[str, ...]
    num_bytes: int
    complete: bool
    skipped: int = 0


@dataclass(frozen=True)
class ExportJob:
    """One export. identity: what decides the content of the target beside the tensors.

    side_files: writes all that is not tensors into a directory.
    """

    source: TensorSource
    options: ExportOptions
    identity: str
    side_files: Callable[[Path], None]

    def __post_init__(self) -> None:
        count, process = self.options.num_processes, self.options.process
        if not 0 <= process < count:
            raise UserError(
                f"process {process} of {count}: processes count from 0 to {max(0, count - 1)}"
            )

    @cached_property
    def _by_name(self) -> Mapping[str, Tensor]:
        return {tensor.name: tensor for tensor in self.source.tensors}

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        return plan_shards(self.source.infos, self.options.max_shard_bytes)

    @cached_property
    def pieces(self) -> list[Piece]:
        return list(pieces(self.shards, self.options.piece_bytes))

    @cached_property
    def fingerprint(self) -> str:
        """Two exports of one fingerprint write the same bytes."""
        checksums = self.source.stored.checkpoint / CHECKSUMS_FILE
        digest = hashlib.sha256(checksums.read_bytes() if checksums.is_file() else b"")
        for text in (self.source.part, self.identity):
            digest.update(text.encode() + b"\0")
        for shard in self.shards:
            digest.update(shard.file.encode() + shard.header)
        return digest.hexdigest()

    def convert(self, piece: Piece) -> tuple[np.ndarray[Any, Any], int]:
        """The rows of a piece, in a buffer that this thread's next call fills anew, and how many values overflowed."""
        return self.source.rows(self._by_name[piece.tensor.name], piece.start, piece.stop)

    def result(self, out: object, *, complete: bool, skipped: int) -> Exported:
        files = tuple(shard.file for shard in self.shards)
        total = sum(shard.num_bytes for shard in self.shards)
        return Exported(str(out), files, total, complete=complete, skipped=skipped)

    def check_source(self) -> None:
        """Raises UserError if this process's part of the checkpoint's files is damaged."""
        if self.options.integrity == "skip":
            return
        checkpoint, process = self.source.stored.checkpoint, self.options.process
        problems = find_problems(checkpoint, part=process, num_parts=self.options.num_processes)
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise UserError(f"checkpoint {checkpoint} is damaged; export another step:\n{lines}")

    def check_overflows(self, overflows: Mapping[str, int]) -> None:
        """Raises UserError with the counts by tensor, unless overflows are allowed."""
        if overflows and self.options.overflow == "refuse":
            assert self.source.dtype is not None
            checkpoint = str(self.source.stored.checkpoint)
            raise UserError(overflow_message(checkpoint, overflows, self.source.dtype))

    def record(self, sums: Mapping[str, Sums]) -> str:
        """`export.json`: where each tensor lies, and the CRC-32 of its bytes, from those of its pieces."""
        parts: dict[str, list[tuple[int, int]]] = {}
        for piece in self.pieces:
            known = sums[piece.shard.file][piece.offset]
            parts.setdefault(piece.tensor.name, []).append((known, piece.num_bytes))
        totals = {name: _crc_of_whole(found) for name, found in parts.items()}
        document = {
            "format": 1,
            "step": self.source.stored.manifest.step,
            "part": self.source.part,
            "fingerprint": self.fingerprint,
            "files": {shard.file: _file_record(shard, totals) for shard in self.shards},
        }
        return json.dumps(document, indent=1) + "\n"


def _crc_of_whole(parts: Iterable[tuple[int, int]]) -> int:
    total = 0
    for crc, length in parts:
        total = isal_zlib.crc32_combine(total, crc, length)
    return total


def _file_record(shard: Shard, totals: Mapping[str, int]) -> dict[str, Any]:
    tensors = {
        tensor.name: {
            "offset": shard.offsets[tensor.name],
            "bytes": tensor.num_bytes,
            "crc32": f"{totals[tensor.name]:08x}",
        }
        for tensor in shard.tensors
    }
    return {"bytes": shard.num_bytes, "tensors": tensors}


def pieces_by_file(all_pieces: Sequence[Piece]) -> dict[str, dict[int, Piece]]:
    """Pieces by their file, then by where they begin in it."""
    found: dict[str, dict[int, Piece]] = {}
    for piece in all_pieces:
        found.setdefault(piece.shard.file, {})[piece.offset] = piece
    return found
