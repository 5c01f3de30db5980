"""Checkpoints that are complete and checksummed or invisible, and fit any mesh.

Knows nothing of models or plans: a flat mapping from logical path to array, and JSON metadata.
"""

from jaxscale.checkpoint.checkpointer import Checkpointer, CheckpointSaveError, Restored
from jaxscale.checkpoint.integrity import Problem
from jaxscale.checkpoint.keep import Keep
from jaxscale.checkpoint.manifest import ArrayEntry

__all__ = [
    "ArrayEntry",
    "CheckpointSaveError",
    "Checkpointer",
    "Keep",
    "Problem",
    "Restored",
]
