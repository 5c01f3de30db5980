"""A model's description as a table and as data."""

from typing import Any

from rich.console import Console
from rich.table import Table

from jaxscale.models.description import ParamSpec
from jaxscale.models.summary import TRAINING_BYTES_PER_PARAMETER, ModelSummary
from jaxscale.telemetry.format import bytes_text


def as_table(summary: ModelSummary, console: Console | None = None) -> None:
    """Print the parameter tree, the totals and the FLOPs formula."""
    console = console or Console()
    console.print(_parameters(summary))
    console.print(f"\n[bold]{summary.total:,}[/bold] parameters{_active(summary)}", highlight=False)
    training = summary.total * TRAINING_BYTES_PER_PARAMETER
    for num_bytes, what in (
        (summary.num_bytes, "as stored"),
        (2 * summary.total, "in bfloat16"),
        (
            training,
            f"with gradients and AdamW moments ({TRAINING_BYTES_PER_PARAMETER} bytes a parameter)",
        ),
    ):
        console.print(f"{bytes_text(num_bytes):>10} {what}", highlight=False)
    console.print(
        f"\nFLOPs a token, at a sequence length of {summary.sequence_length:,}", highlight=False
    )
    console.print(_flops(summary))


def as_data(summary: ModelSummary) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "parameters": {path: _spec(spec) for path, spec in summary.description.items()},
        "total_parameters": summary.total,
        "active_parameters": summary.active,
        "bytes": summary.num_bytes,
        "sequence_length": summary.sequence_length,
        "forward_flops_per_token": {term.component: term.flops for term in summary.terms},
        "forward_flops_formula": {term.component: term.formula for term in summary.terms},
        "training_flops_per_token": summary.training_flops,
    }


def _spec(spec: ParamSpec) -> dict[str, Any]:
    return {
        "axes": list(spec.axes),
        "shape": list(spec.shape),
        "dtype": spec.dtype.name,
        "init": spec.init,
        "count": spec.size,
    }


def _parameters(summary: ModelSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter", no_wrap=True)
    table.add_column("shape by logical axis", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    for path, spec in summary.description.items():
        table.add_row(path, _dims(spec), f"{spec.size:,}")
    return table


def _active(summary: ModelSummary) -> str:
    return "" if summary.active == summary.total else f", {summary.active:,} active for a token"


def _dims(spec: ParamSpec) -> str:
    """`vocab=128256 embed=16384`; a dim without an axis is just its size."""
    sizes = zip(spec.axes, spec.shape, strict=True)
    return " ".join(f"{axis}={size}" if axis else str(size) for axis, size in sizes)


def _flops(summary: ModelSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("forward", no_wrap=True)
    table.add_column("FLOPs", justify="right", no_wrap=True)
    table.add_column("formula", overflow="fold")
    for term in summary.terms:
        table.add_row(term.component, f"{term.flops:.4g}", term.formula)
    table.add_row("all", f"{summary.forward_flops:.4g}", "sum", style="bold")
    table.add_row(
        "training",
        f"{summary.training_flops:.4g}",
        "3 x forward (backward: two products for each one)",
    )
    return table
