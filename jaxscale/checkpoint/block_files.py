"""Where the blocks of a checkpoint's arrays lie in its files, so that they are read straight into place.

TensorStore keeps them in an OCDBT database: a tree whose leaves name a file, an offset and a length for each block.
Read through it a gigabyte passes through fresh buffers twice: 1.6 s here, and 0.8 s straight from the file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from jaxscale.checkpoint.places import kvstore


@dataclass(frozen=True)
class Location:
    """A block's bytes in a local file."""

    file: Path
    offset: int
    length: int


def find_blocks(folder: Path) -> dict[str, Location]:
    """Blocks by key (`params/layers/mlp/up/0.3.0`).

    Those that are not in it (small ones lie inside the tree, and a tree of more than one node is not followed) are read
    through TensorStore.
    """
    base = ts.KvStore.open(kvstore(folder)).result()
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"].get("location")
    if root is None:
        return {}
    node = ts.ocdbt.dump(base, root).result()
    entries: Iterable[dict[str, Any]] = node["entries"] if node["height"] == 0 else ()
    found = {
        entry["key"].decode(): _location(folder, entry["indirect_value"])
        for entry in entries
        if "indirect_value" in entry
    }
    return {key: location for key, location in found.items() if location is not None}


def read_into(file: Any, offset: int, target: np.ndarray[Any, Any]) -> None:
    """Fill an array, contiguous or not, from consecutive bytes of an open unbuffered file.

    Raises ValueError if the file ends before.
    """
    direct = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
    left = direct.reshape(-1).view(np.uint8).data
    file.seek(offset)
    while left:
        count = file.readinto(left)
        if not count:
            raise ValueError(f"{file.name} ends early")
        left = left[count:]
    if direct is not target:
        target[...] = direct


def _location(folder: Path, text: str) -> Location | None:
    """`value:BASE:RELATIVE:OFFSET:LENGTH`, the first two of them parts of a path."""
    parts = text.split(":")
    if len(parts) != 5 or parts[0] != "value":
        return None
    _, base, relative, offset, length = parts
    return Location(folder / base / relative, int(offset), int(length))
