"""The batch of a step, as a pure function of seed and step.

    seed, step, slice of the global batch
      -> global row numbers                      step * global_batch + row
      -> (store, row of the store)               the mixture's pattern
      -> (epoch, place in the epoch's order)     division by the rows of an epoch
      -> (window of the epoch)                   a keyed permutation
      -> token range                             the epoch's rotation of the stream

No step needs the one before, nothing is kept, and so there is nothing to save: resuming is asking
for another step. In an epoch the stream of a store is taken as a ring, cut at a random place and
then every `sequence_length` tokens: each token is an input exactly once, the last window alone may
be short, and cuts fall elsewhere in each epoch.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from jaxscale.data.mixture import Mixture, Source
from jaxscale.data.packing import Batch, pack
from jaxscale.data.shuffle import mix, permute
from jaxscale.data.store import Store
from jaxscale.errors import UserError

ORDER, ROTATION = 0, 1


@dataclass(frozen=True)
class RowOrigin:
    """Where a row of a batch comes from. Ranges are of the store's tokens, in reading order."""

    row: int
    source: str
    epoch: int
    window: int
    token_ranges: tuple[tuple[int, int], ...]
    documents: tuple[int, int]

    def __str__(self) -> str:
        ranges = " + ".join(f"{start:,}..{stop - 1:,}" for start, stop in self.token_ranges)
        first, last = self.documents
        documents = f"document {first:,}" if first == last else f"documents {first:,} to {last:,}"
        return (
            f"row {self.row}: {self.source} tokens {ranges} ({documents}), "
            f"window {self.window:,} of epoch {self.epoch}"
        )


@dataclass(frozen=True)
class _Windows:
    """Rows of one store: `lengths` tokens from `starts` on, round the end of the stream."""

    epochs: Int64[np.ndarray, "rows"]
    numbers: Int64[np.ndarray, "rows"]
    starts: Int64[np.ndarray, "rows"]
    lengths: Int64[np.ndarray, "rows"]


@dataclass(frozen=True)
class Batches:
    """All batches of a run. `global_batch` counts rows a step, over all processes.

    skipped: ranges (start, stop) of batches that no step takes, ascending and apart.
    Raises UserError for sizes that are not positive and for stores smaller than one row.
    """

    mixture: Mixture
    sequence_length: int
    global_batch: int
    seed: int = 0
    skipped: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        check_sizes(sequence_length=self.sequence_length, global_batch=self.global_batch)
        for source in self.mixture.sources:
            if source.store.num_tokens <= self.sequence_length:
                raise UserError(
                    f"{source.name} has {source.store.num_tokens} tokens, less than one row of "
                    f"{self.sequence_length} and the token after it: shorten sequence_length or "
                    f"add text"
                )

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all stores together, each once."""
        return sum(source.store.num_tokens for source in self.mixture.sources)

    def rows(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Rows start..stop-1 of the global batch of a step (by default all)."""
        chosen = self._global_rows(step, start, stop)
        windows = np.zeros((len(chosen), self.sequence_length + 1), np.int32)
        lengths = np.zeros(len(chosen), np.int64)
        for source, places, found in self._locate(chosen):
            windows[places] = read_ring(source.store, found.starts, self.sequence_length + 1)
            lengths[places] = found.lengths
        return pack(windows, lengths, self.mixture.sources[0].store.eod_id)

    def describe(self, step: int, start: int = 0, stop: int | None = None) -> list[RowOrigin]:
        """Where each of the rows comes from: to name what is in a bad batch."""
        chosen = self._global_rows(step, start, stop)
        origins = [
            _origin(source, start + int(place), found, i)
            for source, places, found in self._locate(chosen)
            for i, place in enumerate(places)
        ]
        return sorted(origins, key=lambda origin: origin.row)

    def number_of(self, step: int) -> int:
        """Which batch a step takes: the next that is not skipped."""
        number = step
        for start, stop in self.skipped:
            number += stop - start if number >= start else 0
        return number

    def _global_rows(self, step: int, start: int, stop: int | None) -> Int64[np.ndarray, "rows"]:
        stop = self.global_batch if stop is None else stop
        if step < 0 or not 0 <= start <= stop <= self.global_batch:
            raise IndexError(f"step {step}, rows {start}..{stop} of {self.global_batch}")
        first = self.number_of(step) * self.global_batch
        return first + np.arange(start, stop, dtype=np.int64)

    def _locate(
        self, rows: Int64[np.ndarray, "rows"]
    ) -> Iterator[tuple[Source, Int64[np.ndarray, "places"], _Windows]]:
        """For each store that has some of the rows: which of them, and their windows."""
        sources, ranks = self.mixture.assign(rows)
        for i, source in enumerate(self.mixture.sources):
            places = np.flatnonzero(sources == i)
            if len(places):
                key = self.seed, i
                yield (
                    source,
                    places,
                    find_windows(ranks[places], source.store.num_tokens, self.sequence_length, key),
                )


def leave_out(
    ranges: tuple[tuple[int, int], ...], start: int, stop: int
) -> tuple[tuple[int, int], ...]:
    """The ranges and start..stop-1, ascending, with those that meet joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((*ranges, (start, stop))):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return tuple(joined)


def find_windows(
    ranks: Int64[np.ndarray, "rows"],
    num_tokens: int,
    sequence_length: int,
    key: tuple[int, int],
) -> _Windows:
    """The windows of the rows of a stream of `num_tokens`, counted on through all epochs."""
    per_epoch = -(-num_tokens // sequence_length)
    epochs, places = np.divmod(ranks, per_epoch)
    numbers = permute(places, per_epoch, mix(*key, epochs, ORDER))
    rotation = (mix(*key, epochs, ROTATION) % np.uint64(num_tokens)).astype(np.int64)
    begin = numbers * sequence_length
    return _Windows(
        epochs=epochs,
        numbers=numbers,
        starts=(begin + rotation) % num_tokens,
        lengths=np.minimum(sequence_length, num_tokens - begin),
    )


def read_ring(
    store: Store, starts: Int64[np.ndarray, "rows"], length: int
) -> Int32[np.ndarray, "rows length"]:
    """`length` tokens from each start on, going on at the front of the store at its end."""
    ranges = [_ring_ranges(int(start), length, store.num_tokens) for start in starts]
    pieces = iter(store.read_many([piece for row in ranges for piece in row]))
    rows = [np.concatenate([next(pieces) for _ in row]) for row in ranges]
    return np.stack(rows).astype(np.int32)


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size <= 0:
            raise UserError(f"{name} is {size}: it must be at least 1")


def _ring_ranges(start: int, length: int, num_tokens: int) -> tuple[tuple[int, int], ...]:
    stop = start + length
    if stop <= num_tokens:
        return ((start, stop),)
    return (start, num_tokens), (0, stop - num_tokens)


def _origin(source: Source, row: int, found: _Windows, i: int) -> RowOrigin:
    store = source.store
    ranges = _ring_ranges(int(found.starts[i]), int(found.lengths[i]), store.num_tokens)
    return RowOrigin(
        row=row,
        source=source.name,
        epoch=int(found.epochs[i]),
        window=int(found.numbers[i]),
        token_ranges=ranges,
        documents=(store.document_at(ranges[0][0]), store.document_at(ranges[-1][1] - 1)),
    )


def iterate(
    batches: Batches,
    *,
    start_step: int = 0,
    stop_step: int | None = None,
    rows: slice = slice(None),
    prefetch: int = 4,
    threads: int = 2,
) -> Generator[tuple[int, Batch], None, None]:
    """(step, rows of its batch) from `start_step` on, read ahead by threads.

    `prefetch` batches are made ahead of time; with 0 threads each is made when it is asked for.
    Close the iterator (or drop it) to stop the threads. Nothing in it needs saving.
    """
    import grain

    start, stop, _ = rows.indices(batches.global_batch)
    last = 1 << 62 if stop_step is None else stop_step

    def load(step: int) -> tuple[int, Batch]:
        return step, batches.rows(step, start, stop)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    ahead = iter(grain.MapDataset.range(start_step, last).map(load).to_iter_dataset(options))
    try:
        yield from ahead
    finally:
        ahead.close()


def eval_batches(
    store: Store, sequence_length: int, batch: int, rows: slice = slice(None)
) -> Iterator[Batch]:
    """Every token of the store once, in order; all batches have all rows, the last ones padded.

    Raises UserError for an empty store and for sizes that are not positive.
    """
    check_sizes(sequence_length=sequence_length, batch=batch)
    if store.num_tokens == 0:
        raise UserError(f"{store.path} has no tokens to evaluate on: raise eval_fraction")
    return _eval_batches(store, sequence_length, batch, range(batch)[rows])


def _eval_batches(
    store: Store, sequence_length: int, batch: int, rows: Sequence[int]
) -> Iterator[Batch]:
    offsets = np.array(rows, np.int64) * sequence_length
    for first in range(0, store.num_tokens, batch * sequence_length):
        starts = first + offsets
        lengths = np.clip(store.num_tokens - starts, 0, sequence_length)
        windows = _read_padded(store, starts, sequence_length + 1)
        yield pack(windows, lengths, store.eod_id)


def _read_padded(
    store: Store, starts: Int64[np.ndarray, "rows"], length: int
) -> Int32[np.ndarray, "rows length"]:
    """`length` tokens from each start on, zeros after the end of the store."""
    edges = np.minimum(np.stack([starts, starts + length], axis=1), store.num_tokens)
    windows = np.zeros((len(starts), length), np.int32)
    pieces = store.read_many([(int(start), int(stop)) for start, stop in edges])
    for window, piece in zip(windows, pieces, strict=True):
        window[: len(piece)] = piece
    return windows
