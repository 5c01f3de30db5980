"""Pairs on the command line of `launch k8s`."""

import re
from collections.abc import Iterable

from jaxscale.errors import UserError

_SECRET = re.compile(r"(?P<variable>[A-Za-z_]\w*)=(?P<secret>[a-z0-9][a-z0-9.-]*):(?P<key>[\w.-]+)")
_LABEL = re.compile(r"(?P<label>[A-Za-z0-9./_-]+)=(?P<value>[A-Za-z0-9._-]{0,63})")


def secrets(pairs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Variable -> (secret, key). Raises UserError for anything but VARIABLE=SECRET:KEY."""
    found = {}
    for pair in pairs:
        match = _SECRET.fullmatch(pair)
        if match is None:
            raise UserError(
                f"--secret {pair!r}: write VARIABLE=SECRET:KEY, as in WANDB_API_KEY=wandb:key"
            )
        found[match["variable"]] = match["secret"], match["key"]
    return found


def labels(pairs: Iterable[str]) -> dict[str, str]:
    """Label -> value. Raises UserError for anything but LABEL=VALUE."""
    found = {}
    for pair in pairs:
        match = _LABEL.fullmatch(pair)
        if match is None:
            raise UserError(f"--node-selector {pair!r}: write LABEL=VALUE")
        found[match["label"]] = match["value"]
    return found
