"""A file system whose server never answers, as a network disk whose server is gone."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def dead_mount(folder: Path) -> Iterator[None]:
    """Whoever asks `folder` for anything waits until this is left, or for a minute, or is killed. Skips the test where
    it may not be."""
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no file system can be made here ({error})")
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
        mount = ctypes.CDLL(None, use_errno=True).mount
        if mount(b"dead", os.fsencode(folder), b"fuse", 0, options):
            pytest.skip(f"mounting takes root ({os.strerror(ctypes.get_errno())})")
        end = threading.Timer(60, subprocess.run, (["umount", "--force", str(folder)],))
        end.start()
        yield
        end.cancel()
    finally:
        os.close(server)
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
