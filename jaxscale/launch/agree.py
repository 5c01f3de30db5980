"""What must be the same in every process, compared before anything is compiled; a difference names hosts and keys."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from jaxscale.errors import UserError
from jaxscale.launch.meeting import Meeting

# What changes the program that XLA compiles, or the bytes of a checkpoint.
_PACKAGES = ("jaxscale", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "libtpu", "numpy")
_MOST_SHOWN = 6

Facts = Mapping[str, object]


def versions() -> dict[str, str]:
    """Of Python and of the packages that must not differ; `not installed` where one is missing."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def flatten(tree: object, path: str = "") -> dict[str, object]:
    """Dotted path -> value of nested mappings; lists are values."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    joined = {key: f"{path}.{key}" if path else str(key) for key in tree}
    return {name: value for key in tree for name, value in flatten(tree[key], joined[key]).items()}


def agree(meeting: Meeting, what: str, facts: Facts, advice: str) -> None:
    """Raises UserError where processes differ in any of `facts`, naming the hosts and each difference.

    A digest is compared first: thousands of processes would otherwise exchange their whole configurations.
    """
    digests = meeting.exchange(what, _digest(facts))
    if len(set(digests)) > 1:
        everyone = meeting.exchange(what, facts)
        raise UserError(f"{_difference(meeting, what, everyone)}. {advice}")


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _difference(meeting: Meeting, what: str, everyone: Sequence[Facts]) -> str:
    names = sorted({name for facts in everyone for name in facts})
    different = [name for name in names if len(_values(everyone, name)) > 1]
    lines = [_one(meeting, everyone, name) for name in different[:_MOST_SHOWN]]
    if len(different) > _MOST_SHOWN:
        lines.append(f"and {len(different) - _MOST_SHOWN} more")
    return f"the processes differ in their {what}: " + "; ".join(lines)


def _values(everyone: Sequence[Facts], name: str) -> Counter[str]:
    return Counter(_text(facts, name) for facts in everyone)


def _text(facts: Facts, name: str) -> str:
    return json.dumps(facts[name]) if name in facts else "not set"


def _one(meeting: Meeting, everyone: Sequence[Facts], name: str) -> str:
    """`jax is "0.12" on node1 (3 processes), "0.10" on node7 (process 4)`: the most common value first."""
    parts = []
    for value, count in _values(everyone, name).most_common():
        where = [i for i, facts in enumerate(everyone) if _text(facts, name) == value]
        hosts = ", ".join(dict.fromkeys(meeting.hosts[i] for i in where[:_MOST_SHOWN]))
        processes = f"process {where[0]}" if count == 1 else f"{count} processes, first {where[0]}"
        parts.append(f"{value} on {hosts} ({processes})")
    return f"{name} is {', '.join(parts)}"
