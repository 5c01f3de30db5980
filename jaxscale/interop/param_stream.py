"""Parameters of an open model into a checkpoint, a few blocks at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from jaxscale.checkpoint.manifest import Manifest
from jaxscale.checkpoint.places import Place
from jaxscale.checkpoint.streamed import StreamedCheckpoint
from jaxscale.interop.names import NameMap
from jaxscale.interop.open_model import OpenModel

PARAMS = "params/"
Progress = Callable[[int], None]
"""Told the bytes of each block written."""
Result = TypeVar("Result")

# 16 MiB of float32.
_BLOCK_ELEMENTS = 4 * 2**20
_FILE_BYTES = 64 * 2**20
_AHEAD = 3


def write_params(
    source: OpenModel, manifest: Manifest, directory: Place, progress: Progress
) -> None:
    """Write the checkpoint of `manifest`, whose arrays are the model's parameters, below `directory`.

    Raises UserError if a file of the model is damaged or the disk has no room; then nothing is left.
    """
    orders = {
        e.path: read_order(source.names, e.path.removeprefix(PARAMS)) for e in manifest.arrays
    }
    chunks = {
        entry.path: block_shape(entry.shape, orders[entry.path], _BLOCK_ELEMENTS)
        for entry in manifest.arrays
    }
    checkpoint = StreamedCheckpoint(directory, manifest, chunks=chunks, file_bytes=_FILE_BYTES)
    with checkpoint as target, ThreadPoolExecutor(_AHEAD) as pool:
        boxes = [(path, box) for path in target.entries for box in target.boxes(path)]
        reads = (partial(source.read, path.removeprefix(PARAMS), box) for path, box in boxes)
        for (path, box), block in zip(boxes, ahead(pool, reads), strict=True):
            target.write(path, box, block)
            progress(block.nbytes)


def ahead(pool: Executor, tasks: Iterator[Callable[[], Result]]) -> Iterator[Result]:
    """What the tasks return, in order; while one is used, the next runs."""
    pending = deque(pool.submit(task) for task in islice(tasks, _AHEAD))
    while pending:
        done = pending.popleft().result()
        pending.extend(pool.submit(task) for task in islice(tasks, 1))
        yield done


def read_order(names: NameMap, path: str) -> tuple[int, ...]:
    """The dims of a parameter of ours from the slowest to the fastest in the files that it is read from."""
    _, part = names.sources[path][0]
    dims = [part.layout.ours.index(dim) for group in part.layout.theirs for dim in group]
    return tuple(dims) if part.layer is None else (0, *(1 + dim for dim in dims))


def block_shape(shape: tuple[int, ...], order: Sequence[int], max_elements: int) -> tuple[int, ...]:
    """Blocks that are read from end to end: all of the dims that are fastest there, and equal parts of one other.

    order: dims from the slowest to the fastest where it is read.
    """
    block, room = [1] * len(shape), max_elements
    for dim in reversed(order):
        parts = -(-shape[dim] // max(1, min(shape[dim], room)))
        block[dim] = -(-shape[dim] // parts)
        room //= block[dim]
    return tuple(block)
