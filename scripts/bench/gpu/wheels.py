"""Packages that a machine lacks, carried to it as wheels."""

import zipfile
from pathlib import Path


def unpacked(wheels: Path, site: Path) -> Path:
    """The folder `site` with what the wheels of a folder hold: a wheel is an archive of what goes on the path.

    Ends the program where there is none.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"--wheels {wheels}: there is no wheel in it")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return site
