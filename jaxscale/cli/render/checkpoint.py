"""Checkpoints as tables and as data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxscale.checkpoint.contents import Contents, Group, Listed, groups
from jaxscale.checkpoint.rewrite import Progress as Report
from jaxscale.checkpoint.rewrite import silent
from jaxscale.telemetry.format import bytes_text

_WIDE = 200
_PLAN_KEYS = ("data", "fsdp", "context", "expert", "tensor", "pipeline", "microbatches", "remat")


def print_list(listed: Sequence[Listed], console: Console | None = None) -> None:
    """One line a checkpoint, the newest last."""
    right = {"step", "arrays", "on disk"}
    table = _table("step", "arrays", "on disk", "metric", "what there is", right=right)
    for one in listed:
        metric = "" if one.metric is None else f"{one.metric[0]} {one.metric[1]:.4f}"
        words = one.problem or ", ".join(_group(group) for group in one.groups)
        count = sum(group.num_arrays for group in one.groups)
        table.add_row(f"{one.step:,}", str(count), bytes_text(one.bytes_on_disk), metric, words)
    (console or _console()).print(table)


def print_contents(contents: Contents, console: Console | None = None) -> None:
    """The tree with shapes, dtypes, bytes and blocks; then what the checkpoint says of itself."""
    console = console or _console()
    table = _table("array", "shape", "dtype", "bytes", "in blocks of", right={"bytes"})
    for entry in contents.arrays:
        chunk = contents.chunks[entry.path]
        block = "one" if chunk == entry.shape else _shape(chunk)
        table.add_row(entry.path, _shape(entry.shape), entry.dtype, bytes_text(entry.bytes), block)
    console.print(table)
    total = sum(entry.bytes for entry in contents.arrays)
    console.print(f"\n{bytes_text(total)} in {len(contents.arrays)} arrays", highlight=False)
    for group in groups(contents.arrays):
        console.print(f"  {_group(group)}", highlight=False)
    for line in _facts(contents):
        console.print(line, highlight=False, markup=False)


def list_data(one: Listed) -> dict[str, Any]:
    """A line of the list as plain data."""
    return {
        "step": one.step,
        "bytes_on_disk": one.bytes_on_disk,
        "groups": [asdict(group) for group in one.groups],
        "metric": None if one.metric is None else dict([one.metric]),
        "problem": one.problem,
    }


def contents_data(contents: Contents) -> dict[str, Any]:
    """A whole checkpoint as plain data, with all of its metadata."""
    return {
        "checkpoint": str(contents.checkpoint),
        "step": contents.step,
        "arrays": [
            {**entry._asdict(), "blocks": contents.chunks[entry.path]} for entry in contents.arrays
        ],
        "metadata": contents.metadata,
    }


@contextmanager
def bytes_progress(doing: str, total: int | None) -> Iterator[Report]:
    """A bar of bytes on standard error, gone when all is done; nothing where nobody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(doing, total=total)
        yield lambda num_bytes: bars.advance(task, num_bytes)


def _facts(contents: Contents) -> Iterator[str]:
    metadata = contents.metadata
    yield f"step {contents.step:,} at {contents.checkpoint}"
    model = _section(_section(metadata, "config"), "model")
    if model:
        sizes = ("num_layers", "embed_dim", "num_heads", "vocab_size")
        words = ", ".join(f"{key} {model[key]:,}" for key in sizes if model.get(key))
        yield f"model: {model.get('family') or model.get('build')}{words and ', '}{words}"
    plan = _section(metadata, "plan")
    if plan:
        words = ", ".join(
            f"{key} {plan[key]}" for key in _PLAN_KEYS if plan.get(key) not in {None, 1}
        )
        yield f"plan: {words or 'one device'}"
    versions = _section(_section(metadata, "environment"), "packages")
    if versions:
        yield "saved with " + ", ".join(f"{name} {text}" for name, text in versions.items() if text)


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Part of the metadata, which is whatever its writer put there."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _group(group: Group) -> str:
    return f"{group.name} {bytes_text(group.bytes)} {'+'.join(group.dtypes)}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "scalar"


def _console() -> Console:
    """Of a terminal's width; where nobody watches, wide enough for whatever is searched in it."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def _table(*names: str, right: set[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=name == "array",
        )
    return table
