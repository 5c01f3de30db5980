"""The machines of a run, by process: what messages name."""

import platform

import jax
import numpy as np
from jax.experimental import multihost_utils

_LONGEST = 64


def host_names() -> tuple[str, ...]:
    """The host name of each process; all processes call it together."""
    mine = platform.node() or "?"
    if jax.process_count() == 1:
        return (mine,)
    padded = mine.encode()[:_LONGEST].ljust(_LONGEST, b"\0")
    gathered = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return tuple(bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(gathered))


def named(process: int, hosts: tuple[str, ...]) -> str:
    return f"process {process} ({hosts[process]})"
