"""Host batches as sharded arrays."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxscale.parallel.placement import Placement
from jaxscale.training.losses import Batch


def batch_sharding(placement: Placement, rows: int, sequence_length: int) -> NamedSharding:
    """Rows over the batch axes, sequences whole."""
    return placement.sharding("batch", (rows, sequence_length), ("batch", "sequence"))


def local_rows(sharding: NamedSharding, rows: int) -> slice:
    """The rows of a global batch that this process's devices hold."""
    slices = sharding.addressable_devices_indices_map((rows, 1)).values()
    starts = [index[0].indices(rows)[0] for index in slices if index is not None]
    stops = [index[0].indices(rows)[1] for index in slices if index is not None]
    return slice(min(starts), max(stops))


def place_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding, rows: int) -> Batch:
    """One global array a field, out of the rows that this process read."""
    return {
        name: jax.make_array_from_process_local_data(sharding, values, (rows, values.shape[1]))
        for name, values in batch.items()
    }
