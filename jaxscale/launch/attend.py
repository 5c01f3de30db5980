"""Runs a command on behalf of a launcher on another machine: `python -m jaxscale.launch.attend -- COMMAND`.

ssh passes no signals on, and what it has started outlives a broken connection. So signals come as lines on standard
input (`TERM`, `INT`, ...), and its end, which is the connection's, means that nobody is there any more: the command is
asked to end, and killed if it has not after --grace seconds. Needs nothing but Python.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

_GRACE = 120.0


def attend(command: Sequence[str], orders: IO[str], grace: float = _GRACE) -> int:
    """The command's exit status, as a shell gives it: 128 + N where signal N ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_obey, args=(process, orders, grace), daemon=True).start()
    status = process.wait()
    _kill_group(process)  # What it has left behind.
    return status if status >= 0 else 128 - status


def _obey(process: subprocess.Popen[bytes], orders: IO[str], grace: float) -> None:
    for line in orders:
        number = getattr(signal, f"SIG{line.strip()}", None)
        if isinstance(number, signal.Signals):
            process.send_signal(number)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(prog="attend", description=__doc__)
    parser.add_argument("--grace", type=float, default=_GRACE)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    # SIGHUP comes with a broken connection too; the end of standard input is dealt with in any case.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(attend(arguments.command, sys.stdin, arguments.grace))


if __name__ == "__main__":
    main()
