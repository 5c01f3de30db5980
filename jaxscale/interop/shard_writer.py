"""Files of an export written piece by piece at their places: by threads, by processes, resumable, read back."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from jaxscale.errors import UserError
from jaxscale.interop.export_job import Report, Sums, pieces_by_file
from jaxscale.interop.journal import Journal
from jaxscale.interop.shards import Piece, Shard

# The rows of a piece, contiguous, and how many of their values overflowed.
# The disk writes while threads convert, so that the flush at the end of a file finds little left to do.
_PIECES_A_FLUSH = 8
Convert = Callable[[Piece], tuple[np.ndarray[Any, Any], int]]


@dataclass(frozen=True)
class Written:
    """What this process wrote. skipped: pieces found finished. overflows: values by tensor; their files are not
    finished."""

    pieces: int = 0
    skipped: int = 0
    overflows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardWriter:
    """Writes pieces into hidden files beside their final names, which they get when every piece is there.

    allow_overflow: whether files with overflowed values are finished.
    verified: done when the source is known to be intact: nothing counts as written before. Its error ends the writing.
    """

    target: Path
    journal: Journal
    convert: Convert
    report: Report
    num_threads: int
    allow_overflow: bool
    verified: Future[None]

    def write(self, own: Sequence[Piece], all_pieces: Sequence[Piece]) -> Written:
        """Write a process's pieces and finish the files whose pieces are then all there."""
        offsets = pieces_by_file(all_pieces)
        done, skipped, overflows = self.journal.done(), 0, Counter[str]()
        with ThreadPoolExecutor(self.num_threads) as pool, ThreadPoolExecutor(1) as finisher:
            finishing: list[Future[None]] = []
            for shard, pieces in by_shard(own):
                if self.verified.done():
                    self.verified.result()  # Raises what it found.
                good = self._still_good(pool, shard, pieces, done.get(shard.file, {}))
                todo = [piece for piece in pieces if piece.offset not in good]
                new, lost = self._write_pieces(pool, shard, todo)
                skipped += len(good)
                overflows.update(lost)
                if not lost or self.allow_overflow:
                    every = offsets[shard.file]
                    finishing.append(finisher.submit(self._finish, pool, shard, every, new, good))
            for future in finishing:
                future.result()
        return Written(len(own) - skipped, skipped, dict(overflows))

    def _write_pieces(
        self, pool: ThreadPoolExecutor, shard: Shard, pieces: list[Piece]
    ) -> tuple[Sums, Counter[str]]:
        """CRC-32 of each piece, and overflows by tensor."""
        if not pieces:
            return {}, Counter()
        final = self.target / shard.file
        if final.is_file():  # It was finished and has changed since.
            publish(final, self._partial(shard))
        descriptor = os.open(self._partial(shard), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            write_at(descriptor, shard.header, 0)
            results = []
            for result in pool.map(lambda piece: self._write_piece(descriptor, piece), pieces):
                results.append(result)
                if len(results) % _PIECES_A_FLUSH == 0:
                    os.fdatasync(descriptor)
            os.fsync(descriptor)
        except OSError as error:  # It does not know the name.
            name = error.filename or str(self._partial(shard))
            raise OSError(error.errno, error.strerror, name) from error
        finally:
            os.close(descriptor)
        lost: Counter[str] = Counter()
        for piece, (_, count) in zip(pieces, results, strict=True):
            lost[piece.tensor.name] += count
        sums = {p.offset: crc for p, (crc, _) in zip(pieces, results, strict=True)}
        return sums, +lost

    def _write_piece(self, descriptor: int, piece: Piece) -> tuple[int, int]:
        values, lost = self.convert(piece)
        assert values.nbytes == piece.num_bytes, (piece.tensor, values.shape, values.dtype)
        data = values.reshape(-1).view(np.uint8).data
        write_at(descriptor, data, piece.offset)
        self.report(piece.num_bytes)
        return isal_zlib.crc32(data), lost

    def _finish(
        self,
        pool: ThreadPoolExecutor,
        shard: Shard,
        every: Mapping[int, Piece],
        new: Sums,
        good: Sums,
    ) -> None:
        """Read back, note, and give the file its name if all of it is there."""
        self.verified.result()
        path = self._partial(shard)
        list(pool.map(lambda at: self._check(path, every[at], new[at]), new))
        if new:
            self.journal.add(shard.file, new)
        noted = self.journal.done().get(shard.file, {})
        if noted.keys() != every.keys() or not path.is_file():
            return
        try:
            for offset in noted.keys() - new.keys() - good.keys():
                self._check(path, every[offset], noted[offset])  # Another process wrote it.
        except FileNotFoundError:
            return  # That process has checked this one's pieces meanwhile, and given the file its name.
        publish(path, self.target / shard.file)

    def _check(self, path: Path, piece: Piece, crc: int) -> None:
        if crc_of(path, piece.offset, piece.num_bytes) != crc:
            raise UserError(
                f"{piece.tensor.name} reads back from {path} other than it was written: the disk or the memory of this "
                "machine is at fault. Remove that file and run the same command again"
            )

    def _still_good(
        self, pool: ThreadPoolExecutor, shard: Shard, pieces: list[Piece], noted: Sums
    ) -> Sums:
        """What an earlier run finished of these, where it reads back as was noted then."""
        final = self.target / shard.file
        path = final if final.is_file() else self._partial(shard)
        known = [piece for piece in pieces if piece.offset in noted] if path.is_file() else []
        sums = pool.map(lambda piece: crc_of(path, piece.offset, piece.num_bytes), known)
        found = zip(known, sums, strict=True)
        return {piece.offset: crc for piece, crc in found if crc == noted[piece.offset]}

    def _partial(self, shard: Shard) -> Path:
        return self.target / f".{shard.file}.partial"


def by_shard(pieces: Iterable[Piece]) -> list[tuple[Shard, list[Piece]]]:
    """Consecutive pieces, file by file."""
    found: list[tuple[Shard, list[Piece]]] = []
    for piece in pieces:
        if not found or found[-1][0] is not piece.shard:
            found.append((piece.shard, []))
        found[-1][1].append(piece)
    return found


def crc_of(path: Path, offset: int, num_bytes: int) -> int:
    """CRC-32 of a part of a file as it is now; -1 where the file is too short."""
    crc, left = 0, num_bytes
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while left:
            data = file.read(min(left, 2**20))
            if not data:
                return -1
            crc, left = isal_zlib.crc32(data, crc), left - len(data)
    return crc


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of the data; a single call may write less. Raises OSError where the disk is full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written


def publish(partial: Path, final: Path) -> None:
    """Give a finished file its name; another process may have done so."""
    try:
        partial.replace(final)
    except FileNotFoundError:
        assert final.is_file(), final
