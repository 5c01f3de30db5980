"""Where a run may live."""

import re
from pathlib import Path

from jaxscale.errors import UserError

# What a path has made of a URL.
_URL = re.compile(r"^[a-z][a-z0-9]+:/")


def check_local(directory: Path) -> None:
    """Raises UserError for a URL: a run writes its log, its traces and its report into files that grow."""
    text = str(directory)
    if _URL.match(text):
        url = text.replace(":/", "://", 1)
        raise UserError(
            f"--run-dir {url}: a run's own directory has to be on a file system. Its checkpoints may be elsewhere: "
            f"checkpoint.directory={url}"
        )
