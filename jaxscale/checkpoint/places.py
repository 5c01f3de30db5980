"""Places: directories of this machine, and of object stores (gs://, s3://), which fsspec and TensorStore reach.

Credentials are the libraries' business: environment variables, configuration files, the machine's own account.
"""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from upath import UPath

from jaxscale.errors import UserError

Place = Path | UPath

_DRIVERS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
# What the libraries raise beside OSError where credentials are missing or refused.
_REFUSALS = {
    "gs": ("google.auth.exceptions:GoogleAuthError", "gcsfs.retry:HttpError"),
    "gcs": ("google.auth.exceptions:GoogleAuthError", "gcsfs.retry:HttpError"),
    "s3": ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError"),
}


def is_url(location: str | Place) -> bool:
    """Whether a location is a URL and not a path."""
    return "://" in str(location)


def open_place(location: str | Place) -> Place:
    """The place at a path or URL; nothing need be there.

    Raises UserError for a URL that no installed library reaches.
    """
    if not isinstance(location, str):
        return location
    if not is_url(location):
        return Path(location)
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    try:
        # Listings change under us: other processes write, and lists that fsspec remembers do not show it.
        return UPath(location.rstrip("/"), use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{location} cannot be opened: {error}{_extra(location)}") from error


def check_reachable(place: Place) -> None:
    """Raises UserError where a store does not answer, or does not know who asks."""
    if isinstance(place, Path):
        return
    names = (name.split(":") for name in _REFUSALS.get(place.protocol, ()))
    try:
        refusals = tuple(getattr(importlib.import_module(module), name) for module, name in names)
        try:
            place.exists()
        except (OSError, *refusals) as error:
            raise UserError(
                f"{place} cannot be reached: {error}. jaxscale takes the credentials that the tools of the store take "
                "(environment variables, configuration files, the machine's account)"
            ) from error
    except ImportError as error:
        raise UserError(f"{place} cannot be opened: {error}{_extra(str(place))}") from error


def kvstore(place: Place) -> dict[str, Any]:
    """TensorStore's words for a directory. Raises UserError for a store that it does not reach."""
    if isinstance(place, Path):  # As a URL, a path with a percent sign would mean another one.
        return {"driver": "file", "path": f"{place.absolute()}/"}
    driver = _DRIVERS.get(place.protocol)
    if driver is None:
        raise UserError(f"{place}: checkpoints are kept in directories, on gs:// and on s3://")
    bucket, _, path = place.path.partition("/")
    options = _s3_options() if driver == "s3" else {}
    return {"driver": driver, "bucket": bucket, "path": f"{path}/", **options}


def files_below(place: Place) -> dict[str, int]:
    """Bytes of every file below a directory, by its path there, sorted; empty where there is none."""
    if isinstance(place, Path):
        files = (path for path in place.rglob("*") if path.is_file())
        sizes = {path.relative_to(place).as_posix(): path.stat().st_size for path in files}
    else:
        found = place.fs.find(place.path, detail=True)
        sizes = {name.removeprefix(f"{place.path}/"): one["size"] for name, one in found.items()}
    return dict(sorted(sizes.items()))


def file_names(directory: Place) -> list[str]:
    """Names of the files directly inside, sorted; none where there is no such directory."""
    if not directory.is_dir():
        return []
    if isinstance(directory, Path):
        return sorted(path.name for path in directory.iterdir() if path.is_file())
    found = directory.fs.ls(directory.path, detail=True)
    return sorted(one["name"].rsplit("/", 1)[-1] for one in found if one["type"] == "file")


def remove_tree(place: Place) -> None:
    """A directory and all below it; what cannot be removed stays."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
    elif place.exists():
        place.fs.rm(place.path, recursive=True)


def copy_file(source: Place, target: Place) -> None:
    """A small file to another place."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _s3_options() -> dict[str, Any]:
    """What botocore reads from the environment and TensorStore does not."""
    found: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        found["endpoint"] = endpoint
    if region:
        found["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # Else it logs each of the files that it looks for first.
        found["aws_credentials"] = {"type": "environment"}
    return found


def _extra(location: str) -> str:
    """What to install."""
    extras = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
    extra = extras.get(location.split("://", maxsplit=1)[0])
    return f". Install jaxscale[{extra}]" if extra else ""
