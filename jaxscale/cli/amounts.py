"""Amounts of bytes on the command line."""

from jaxscale.errors import UserError


def parse_option(text: str, option: str) -> int:
    """`5GB` as bytes. Raises UserError that names the option."""
    from jaxscale.hardware.units import parse_bytes

    try:
        return int(parse_bytes(text))
    except UserError as error:
        raise UserError(f"{option} {text!r}: {error}") from error
