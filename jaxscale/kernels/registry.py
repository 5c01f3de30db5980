"""How an op's implementation is chosen: by name, or by what was measured.

An op lists its implementations in the order of preference. Pallas kernels (names that begin with "pallas") are taken
by `auto` only where a tuning table shows that they win; the others wherever they do not decline.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from jaxscale.errors import UserError
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import (
    SMALLEST_WIN,
    Entry,
    Key,
    bucket,
    jaxlib_version,
    lookup,
    other_jaxlib,
)

__all__ = ["Call", "Choice", "Implementation", "choose", "key_of", "recording"]


class Call(Protocol):
    """What is known of a call before it runs: a frozen dataclass of each op.

    dtype: of the operands. layout: a word for the variant of the op. sizes: by letter, those that decide speed.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def sizes(self) -> Mapping[str, int]: ...


CallT = TypeVar("CallT", bound=Call)


@dataclass(frozen=True)
class Implementation(Generic[CallT]):
    """reason: why it does not serve a call on a target, with the numbers, or None. version: see `tuning.Key`."""

    name: str
    reason: Callable[[Target, CallT], str | None]
    version: int = 1

    @property
    def is_pallas(self) -> bool:
        return self.name.startswith("pallas")


def choose(
    op: str,
    implementations: Sequence[Implementation[CallT]],
    target: Target,
    call: CallT,
    wanted: str = "auto",
    table: Sequence[Entry] = (),
) -> Choice:
    """The implementation that runs a call.

    wanted: "auto", "pallas" (whichever Pallas kernel serves the target), or an implementation's name. Raises UserError
    for a name that there is not, and where what was named declines, with its reason. The last implementation that is
    not Pallas must serve every call. The choice is put on the list of a surrounding `recording`.
    """
    reasons = {each.name: each.reason(target, call) for each in implementations}
    if wanted == "auto":
        choice = _automatic(op, implementations, target, call, table, reasons)
    else:
        choice = _named(op, implementations, target, call, wanted, table, reasons)
    record = _record.get()
    if record is not None:
        record.append(choice)
    return choice


def key_of(op: str, implementation: Implementation[CallT], target: Target, call: CallT) -> Key:
    """Under which a measurement of a call stands in the table."""
    return Key(
        op=op,
        implementation=implementation.name,
        version=implementation.version,
        dtype=call.dtype,
        layout=call.layout,
        bucket=bucket(call.sizes),
        device_kind=target.device_kind,
        jaxlib=jaxlib_version(),
    )


_record: ContextVar[list[Choice] | None] = ContextVar("kernel_choices", default=None)


@contextmanager
def recording() -> Iterator[list[Choice]]:
    """A list that every choice made inside the `with` block (while tracing) is added to, and a surrounding one."""
    choices: list[Choice] = []
    outer = _record.get()
    token = _record.set(choices)
    try:
        yield choices
    finally:
        _record.reset(token)
        if outer is not None:
            outer.extend(choices)


def _automatic(
    op: str,
    implementations: Sequence[Implementation[CallT]],
    target: Target,
    call: CallT,
    table: Sequence[Entry],
    reasons: Mapping[str, str | None],
) -> Choice:
    declined: dict[str, str] = {}
    for each in implementations:
        reason = reasons[each.name]
        entry = lookup(table, key_of(op, each, target, call)) if each.is_pallas else None
        if reason is None and each.is_pallas:
            reason = _not_a_win(entry, table, key_of(op, each, target, call))
        if reason is None:
            why = "first that serves the call" if entry is None else _measured(entry)
            config = {} if entry is None else entry.config
            return Choice(each.name, declined, why, op, _words(call), config, target)
        declined[each.name] = reason
    raise AssertionError(f"no implementation of {op} serves {_words(call)} on {target}: {declined}")


def _named(
    op: str,
    implementations: Sequence[Implementation[CallT]],
    target: Target,
    call: CallT,
    wanted: str,
    table: Sequence[Entry],
    reasons: Mapping[str, str | None],
) -> Choice:
    asked = [e for e in implementations if e.name == wanted or (wanted == "pallas" and e.is_pallas)]
    if not asked:
        known = ", ".join(("auto", "pallas", *reasons))
        raise UserError(f"{op} has no implementation {wanted!r}: it has {known}")
    for each in asked:
        if reasons[each.name] is None:
            entry = lookup(table, key_of(op, each, target, call))
            why = "asked for" if entry is None else f"asked for; {_measured(entry)}"
            config = {} if entry is None else entry.config
            return Choice(each.name, {}, why, op, _words(call), config, target)
    told = "; ".join(f"{each.name}: {reasons[each.name]}" for each in asked)
    raise UserError(
        f"{op} of {_words(call)} cannot run as {wanted!r} on {target}: {told}. Leave it to 'auto'."
    )


def _not_a_win(entry: Entry | None, table: Sequence[Entry], key: Key) -> str | None:
    if entry is None:
        other = other_jaxlib(table, key)
        if other is not None:
            return f"measured with jaxlib {other}, not with {key.jaxlib} (`jaxscale tune` does)"
        return f"not measured on {key.device_kind} ({key.bucket}, {key.dtype})"
    if entry.win < SMALLEST_WIN:
        return f"{_measured(entry)}: under {SMALLEST_WIN:.0%} faster"
    return None


def _measured(entry: Entry) -> str:
    return f"{entry.baseline_seconds / entry.seconds:.2f}x the baseline, measured {entry.date}"


def _words(call: Call) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in call.sizes.items())
    return f"{call.layout} {call.dtype} {sizes}".strip()
