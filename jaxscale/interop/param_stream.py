"""Parameters of an open model into a checkpoint, a few blocks at a time."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from jaxscale.checkpoint.manifest import Manifest
from jaxscale.checkpoint.places import Place
from jaxscale.checkpoint.streamed import StreamedCheckpoint
from jaxscale.interop.open_model import OpenModel

PARAMS = "params/"
Progress = Callable[[int], None]
"""Told the bytes of each block written."""
Result = TypeVar("Result")

# 16 MiB of float32. With one block being written and one being read, an import takes some 200 MB above the interpreter.
_BLOCK_ELEMENTS = 4 * 2**20
_FILE_BYTES = 64 * 2**20
_AHEAD = 1


def write_params(
    source: OpenModel, manifest: Manifest, directory: Place, progress: Progress
) -> None:
    """Write the checkpoint of `manifest`, whose arrays are the model's parameters, below `directory`.

    Raises UserError if a file of the model is damaged or the disk has no room; then nothing is left.
    """
    chunks = {entry.path: block_shape(entry.shape, _BLOCK_ELEMENTS) for entry in manifest.arrays}
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


def block_shape(shape: tuple[int, ...], max_elements: int) -> tuple[int, ...]:
    """Single layers, then the longest dim halved again and again until a block is small enough.

    Not whole rows, which are columns in the files of others: of [16384, 53248], 16 MiB of rows are 79 of their columns,
    158 bytes at a time; a block of [2048, 1664] reads 4 KB at a time.
    """
    parts = [1] * len(shape)
    if len(shape) > 2 and math.prod(shape) > max_elements:
        parts[0] = shape[0]
    block = shape
    while True:
        block = tuple(-(-size // count) for size, count in zip(shape, parts, strict=True))
        if math.prod(block) <= max_elements:
            return block
        parts[block.index(max(block))] *= 2
