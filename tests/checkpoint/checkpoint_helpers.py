import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(**axes: int) -> Mesh:
    count = int(np.prod(list(axes.values())))
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:count],
    )


def put(mesh: Mesh, value: np.ndarray, *spec: str | tuple[str, ...] | None) -> jax.Array:
    return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))


def targets(arrays: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for path, x in arrays.items()
    }


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Writes past the limit fail for real (EFBIG), in any container and for root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
