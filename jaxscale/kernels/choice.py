"""Which implementation of an op runs, and why the others do not."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale.errors import UserError


@dataclass(frozen=True)
class Choice:
    """name: the implementation that runs. declined: reason by name for each one that was considered before it."""

    name: str
    declined: Mapping[str, str]

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.declined.items())
        return f"{self.name} ({reasons})" if reasons else self.name


def first_willing(op: str, order: tuple[str, ...], reasons: Mapping[str, str | None]) -> Choice:
    """The first of `order` that gives no reason to decline. The last of `order` must be willing."""
    declined: dict[str, str] = {}
    for name in order:
        reason = reasons[name]
        if reason is None:
            return Choice(name, declined)
        declined[name] = reason
    raise AssertionError(f"no implementation of {op} among {order} is willing: {declined}")


def named(op: str, name: str, reasons: Mapping[str, str | None]) -> Choice:
    """The implementation that the user asked for.

    Raises UserError if there is none of that name, or if it declines.
    """
    if name not in reasons:
        known = ", ".join(("auto", *reasons))
        raise UserError(f"{op} has no implementation {name!r}: it has {known}")
    reason = reasons[name]
    if reason is not None:
        raise UserError(f"{op} cannot run as {name!r}: {reason}. Use implementation='auto'.")
    return Choice(name, {})
