"""Kernels refuse arrays that are spread over devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxscale.errors import UserError
from jaxscale.kernels.local import check_local

ROWS = PartitionSpec("rows")


def _checked(x: jax.Array) -> jax.Array:
    check_local("scaling", x)
    return 2 * x


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_spread_arrays_are_refused_and_blocks_are_not(kind: AxisType) -> None:
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,))
    x = jax.device_put(jnp.arange(4.0), NamedSharding(mesh, ROWS))
    with pytest.raises(UserError, match="is on 2 devices"):
        _checked(x)
    with jax.set_mesh(mesh):
        with pytest.raises(UserError, match="axes rows that are not manual"):
            jax.jit(_checked)(x)
        doubled = jax.jit(jax.shard_map(_checked, in_specs=ROWS, out_specs=ROWS))(x)
    assert doubled.tolist() == [0, 2, 4, 6]


def test_one_device_is_local_whatever_its_mesh() -> None:
    with jax.set_mesh(jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))):
        assert jax.jit(_checked)(jnp.ones(2)).tolist() == [2, 2]
    assert _checked(jnp.ones(2)).tolist() == [2, 2]
