"""What a JAX process on CPU sets before JAX is imported, each with what it is worth (docs/benchmarks)."""

import ctypes
import os
import sys

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def prepare(dtype: str) -> None:
    """Keep freed memory, and choose XLA's library for matrix products.

    A step's buffers are one allocation of some GiB. Returned to the system after each step, they cost a million page
    faults in the next. bfloat16 products reach AMX by YNNPACK only, the default; fp32 ones are faster by Eigen.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for parameter, value in (
            (_MMAP_MAX, 0),
            (_TRIM_THRESHOLD, -1),
            (_ARENA_MAX, 1),
            (_TOP_PAD, 256 << 20),
        ):
            if not libc.mallopt(parameter, value):
                raise OSError(f"mallopt refused parameter {parameter} = {value}")
    if dtype == "float32":
        flags = os.environ.get("XLA_FLAGS", "")
        eigen = "--xla_cpu_experimental_ynn_fusion_type="
        os.environ["XLA_FLAGS"] = f"{eigen} {flags}".strip()
