"""What a JAX process on CPU sets before JAX is imported, each with what it is worth (docs/benchmarks)."""

import ctypes
import os
import sys

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def prepare(dtype: str) -> None:
    """Keep freed memory, and choose XLA's library for matrix products.

    A step's buffers are one allocation of some GiB. Returned to the system after each step, they cost a million page
    faults in the next. YNNPACK reduces rows 3 times as fast as XLA's own code, but multiplies fp32 matrices more slowly than Eigen; bfloat16
    products reach AMX by YNNPACK only, which is the default.
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
        reductions = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
        os.environ["XLA_FLAGS"] = f"{reductions} {flags}".strip()
