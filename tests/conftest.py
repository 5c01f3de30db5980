"""Eight CPU devices for every test, and programs compiled fast, and once: set before anything imports JAX.

XLA hands LLVM the same program, LLVM optimizes less, and on JAX 0.10 a fusion becomes a loop in the quicker of its two
ways (a third less to compile; JAX 0.12 knows no such flag). CI runs tests a second time as users compile.

What is compiled is kept for the session, so that the next run, also in a process of its own, reads it: apart for each
worker of pytest-xdist, because JAX does not lock its files.
"""

import gc
import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

from hypothesis import settings

CACHE = "JAX_COMPILATION_CACHE_DIR"
QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK)
if CACHE not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jaxscale-compiled-")  # Removed with this module.
    os.environ[CACHE] = compiled.name
    # JAX keeps only what took it a second or longer.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if os.environ[CACHE] and "PYTEST_XDIST_WORKER" in os.environ:
    os.environ[CACHE] = str(Path(os.environ[CACHE]) / os.environ["PYTEST_XDIST_WORKER"])

# Commands that tests start keep the bytecode of this project, whatever pytest itself was told: without it each takes
# 3.2 s of processor to import what trains, with it 1.8 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What is started in a script's background ignores Ctrl-C, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is up to what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it behind each test.

    Nor behind every 700 new objects: tracing a program makes millions, few of them in circles (a seventh of its time).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
