"""What a process that computes on CPU sets before JAX is imported (figures: docs/benchmarks/cpu_step.md).

Both settings are for a process where JAX has no accelerator; where it has one they are left alone.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# glibc's mallopt parameters (malloc.h) and our values.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEEP_MEMORY = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1), (_TOP_PAD, 256 << 20))
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_REDUCTIONS_ONLY = "LIBRARY_FUSION_TYPE_REDUCE"


def prepare_cpu_process(dtype: str) -> None:
    """Keep freed memory, and choose XLA's library for matrix products of `dtype`; nothing where JAX has an accelerator.

    A step's buffers are one allocation of some GiB. Returned to the system after each step, they cost a million page
    faults in the next. YNNPACK reduces rows 3 times as fast as XLA's own code, but multiplies fp32 matrices more slowly
    than Eigen; bfloat16 products reach AMX by YNNPACK only, which is the default.
    """
    if _has_accelerator():
        return
    _keep_freed_memory()
    flags = os.environ.get("XLA_FLAGS", "")
    if dtype == "float32" and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{_FLAG}={_REDUCTIONS_ONLY} {flags}".strip()


def _has_accelerator() -> bool:
    """Whether JAX would find more than a CPU: a plugin or libtpu is installed and not asked to stay away."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


def _keep_freed_memory() -> None:
    """A hint to glibc; other systems and other allocators go on as they are."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in _KEEP_MEMORY:
        mallopt(parameter, value)
