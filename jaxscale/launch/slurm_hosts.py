"""Slurm's short forms: `node[01-03,7],login` for hosts, `2(x3),1` for tasks per node."""

import re

from jaxscale.errors import UserError

_PART = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_hosts(text: str) -> list[str]:
    """Every host that a list names, in order. Raises UserError for what is no host list."""
    if not re.fullmatch(r"[^\s\[\],]([^\s\[\]]|\[[\d,-]+\])*", text):
        raise UserError(f"{text!r} is no Slurm host list; for example node[01-03],node07")
    return [host for part in _PART.findall(text) for host in _expand(part)]


def expand_tasks(text: str) -> list[int]:
    """The number of tasks of each node. Raises UserError for anything but `2(x3),1`."""
    matches = [_TASKS.fullmatch(part) for part in text.split(",")]
    if None in matches:
        raise UserError(f"{text!r} says no tasks per node; for example 2(x3),1")
    return [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]


def _expand(part: str) -> list[str]:
    """One name with any number of bracketed ranges; the last range runs fastest."""
    match = re.match(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if match is None:
        return [part]
    head, ranges, tail = match.groups()
    return [
        head + number + rest
        for one in ranges.split(",")
        for number in _range(one)
        for rest in _expand(tail)
    ]


def _range(text: str) -> list[str]:
    """`08-10` is 08, 09, 10: numbers keep the width of the first."""
    first, _, last = text.partition("-")
    return [str(i).zfill(len(first)) for i in range(int(first), int(last or first) + 1)]
