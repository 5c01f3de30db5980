"""A process must not outlive what started it: a launcher that is killed cannot end its children."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

LAUNCHER = "JAXSCALE_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def end_with_launcher(environment: Mapping[str, str]) -> None:
    """Has Linux send SIGTERM when the launcher, whose process id JAXSCALE_LAUNCHER is, ends; elsewhere nothing."""
    launcher = environment.get(LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != launcher:  # It ended before the system was asked.
        os.kill(os.getpid(), signal.SIGTERM)
