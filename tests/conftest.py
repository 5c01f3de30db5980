"""Eight CPU devices for every test, and programs compiled in half the time: set before anything imports JAX.

XLA hands LLVM the same program, LLVM optimizes less. CI runs the tests a second time as users compile.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
