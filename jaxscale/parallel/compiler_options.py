"""What the compiler is told about a train step beside its program: options by device, with a plan's own over them."""

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, SingleDeviceSharding

from jaxscale.config.explain import nearest
from jaxscale.config.plan import Plan
from jaxscale.parallel.errors import PlacementError

Value = str | bool
Options = Mapping[str, Value]
# As a plan has them. None: without this option.
Asked = Mapping[str, Value | float | None]
Say = Callable[[str], None]

# Gathers and scatters of v5p and v6e run on their SparseCores, beside the products. Without these options the compiler
# (libtpu 0.0.42 and 0.0.50) lets every one of them wait, and over a whole slice of more than eight chips it makes a
# scatter an all-reduce, of twice the bytes; over 4x4x4 chips a gather, too. TPU7x does so unasked (compiled: the same
# program with and without). Sources: AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py,
# ENABLE_SPARSECORE_OFFLOADING_FOR_RS_AG_AR; gathers over two and three dims and scatters over several are its recipes'
# for TPU7x. Not the "continuation fusion" that older recipes have: libtpu 0.0.50 refuses it but for v5e.
SPARSE_CORE: Options = MappingProxyType(
    {
        "xla_enable_async_all_gather": True,
        "xla_sc_disable_megacore_partitioning": True,
        "xla_sc_enable_instruction_fusion": False,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
        "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": True,
        "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": True,
        "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
        "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
        "xla_tpu_enable_sparse_core_reduce_scatter_v2": True,
        "xla_tpu_prefer_async_allgather_to_allreduce": True,
        "xla_tpu_use_tc_device_shape_on_sc": True,
    }
)
# Over a whole torus of 4x4x4 the compiler makes gathers of v4 all-reduces, too. These two keep them gathers; scatters
# stay all-reduces without the SparseCores, which no recipe lets a v4 use.
GATHERS: Options = MappingProxyType(
    {
        name: SPARSE_CORE[name]
        for name in ("xla_enable_async_all_gather", "xla_tpu_prefer_async_allgather_to_allreduce")
    }
)
# JAX calls v5p "TPU v5", and v6e "TPU v6 lite".
_BY_KIND: Mapping[str, Options] = {
    "TPU v4": GATHERS,
    "TPU v5": SPARSE_CORE,
    "TPU v6 lite": SPARSE_CORE,
}
# Where a user sets options for all programs of a process: what is named there is left alone.
_ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
_UNKNOWN = re.compile(r"No such compile option: '([^']+)'")


def step_options(mesh: Mesh | AbstractMesh, plan: Plan, say: Say | None = None) -> dict[str, Value]:
    """`compiler_options` for the devices of a mesh; none for one without devices, for which nothing is compiled."""
    if isinstance(mesh, AbstractMesh):
        return {}
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    device = (own or list(mesh.devices.flat))[0]
    return compiler_options(device, default_options(device), plan.compiler_options, say)


def default_options(device: jax.Device) -> Options:
    """What a plan need not say for devices of this kind."""
    return _BY_KIND.get(device.device_kind, {})


def compiler_options(
    device: jax.Device,
    ours: Options,
    asked: Asked,
    say: Say | None = None,
) -> dict[str, Value]:
    """Options for a program of this device's kind: those of `ours` that its compiler knows and the environment does not
    set, then those `asked` for.

    say: is told of what of ours this compiler does not know, or of all if it refuses them. Raises PlacementError if it
    does not know one asked for, or cannot read its value.
    """
    wanted = {name: _spelled(value) for name, value in asked.items() if value is not None}
    left = {name: value for name, value in ours.items() if name not in asked and not _is_set(name)}
    try:
        known, unknown = _known(device, tuple((left | wanted).items()))
    except PlacementError:
        if wanted:
            raise
        known, unknown = {}, tuple(left)
    _refuse([name for name in unknown if name in wanted], device, {**ours, **known})
    if unknown and say is not None:
        say(f"this compiler does without what it does not take: {', '.join(unknown)}")
    return dict(known)


def _spelled(value: Value | float) -> Value:
    """As JAX takes it: numbers in words."""
    return value if isinstance(value, bool | str) else str(value)


def _is_set(name: str) -> bool:
    """Whether the environment names an option, with a value or without."""
    words = " ".join(os.environ.get(variable, "") for variable in _ENVIRONMENT).split()
    return any(word.lstrip("-").split("=")[0] == name for word in words)


def _refuse(names: list[str], device: jax.Device, known: Options) -> None:
    if names:
        raise PlacementError(
            f"plan.compiler_options.{names[0]}: the compiler for {device.device_kind} does not know this option"
            f"{nearest(names[0], known)}; leave it out"
        )


@lru_cache
def _known(
    device: jax.Device, options: tuple[tuple[str, Value], ...]
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The options that a device's compiler takes, and the names of the others; asked with an empty program."""
    left, unknown = dict(options), []
    while left and (name := _first_unknown(device, left)):
        del left[name]
        unknown.append(name)
    return left, tuple(unknown)


def _first_unknown(device: jax.Device, options: dict[str, Value]) -> str | None:
    """Raises PlacementError where the compiler refuses for another reason: a value that it cannot read."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(device))
    lowered = jax.jit(jnp.negative).lower(scalar)
    try:
        lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        found = _UNKNOWN.search(str(error))
        if found is not None:
            return found[1]
        said = str(error).splitlines()[0]
        raise PlacementError(f"plan.compiler_options: the compiler says: {said}") from None
    return None
