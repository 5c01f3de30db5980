"""Measured kernels as a table: time, speed over the baseline, shares of two rooflines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxscale.hardware import find_chip
from jaxscale.kernels.cases import Case
from jaxscale.kernels.measure import Measurement
from jaxscale.kernels.rates import Rates, measured_rates

# Of what is printed where nobody watches.
_WIDTH = 100
# Characters of a case that leave room for an implementation on its line.
_SHORT = 50


@dataclass(frozen=True)
class Device:
    """The device that was measured: its rates by the data sheet, None for a chip not known, and as measured now."""

    kind: str
    dtype: str
    sheet: Rates | None
    measured: Rates

    @staticmethod
    def here(dtype: str) -> "Device":
        """The first device of this process; measuring takes a second."""
        kind = jax.devices()[0].device_kind
        return Device(kind, dtype, _data_sheet(kind, dtype), measured_rates(dtype))


def _data_sheet(kind: str, dtype: str) -> Rates | None:
    chip = find_chip(kind)
    if chip is None or dtype not in chip.peak_flops:
        return None
    return Rates(chip.peak_flops[dtype], chip.hbm_bandwidth, f"{chip.name}: {chip.source}")


def as_rows(measured: Sequence[Measurement], device: Device, baseline: str) -> list[dict[str, Any]]:
    """The implementations of one case. Ratios: speed over the baseline's, and over each roofline."""
    seconds = next((m.seconds for m in measured if m.implementation == baseline), None)
    return [_row(each, device, baseline, seconds) for each in measured]


def _row(
    each: Measurement, device: Device, baseline: str, baseline_seconds: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": each.case.name,
        "implementation": each.implementation,
        "seconds": each.seconds,
        "why_not": each.why,
    }
    if each.seconds is None:
        return row
    return row | {
        "baseline": baseline,
        "to_baseline": None if baseline_seconds is None else baseline_seconds / each.seconds,
        "of_roofline": _share(each.case, each.seconds, device.sheet),
        "of_measured_roofline": _share(each.case, each.seconds, device.measured),
    }


def _share(case: Case, seconds: float, rates: Rates | None) -> float | None:
    return None if rates is None else case.roofline(rates.flops, rates.bandwidth) / seconds


def print_rows(
    rows: Sequence[dict[str, Any]], device: Device, console: Console | None = None
) -> None:
    """To the terminal, or the console given: what ran, then why others did not."""
    console = console or _console()
    console.print(f"{device.kind}, {device.dtype}", style="bold", highlight=False)
    for name, rates in (("data sheet", device.sheet), ("measured", device.measured)):
        if rates is not None:
            console.print(f"roofline, {name}: {_words(rates)}", highlight=False, markup=False)
    console.print(_table(rows, has_sheet=device.sheet is not None))
    for reason in _reasons(rows):
        console.print(reason, highlight=False, markup=False)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _words(rates: Rates) -> str:
    arithmetic = f"{rates.flops / 1e12:.4g} TFLOP/s"
    bandwidth = "" if rates.bandwidth is None else f", {rates.bandwidth / 1e9:,.4g} GB/s"
    return f"{arithmetic}{bandwidth} ({rates.source})"


def _reasons(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Why implementations did not run, and of which ops."""
    ops: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["why_not"]:
            of = ops.setdefault((row["implementation"], row["why_not"]), {})
            of[row["case"].partition(" ")[0]] = None
    for (name, why), of in ops.items():
        yield f"not run: {name} ({', '.join(of)}): {why}"


def _table(rows: Sequence[dict[str, Any]], *, has_sheet: bool) -> Table:
    """A line for each case, and below it its implementations; one line where there is one."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    shares = ["of data\nsheet"] if has_sheet else []
    for name in ("ms", "speed over\nbaseline", *shares, "of\nmeasured"):
        table.add_column(name, justify="right", no_wrap=True)
    for case, group in groupby(rows, key=lambda row: row["case"]):
        ran = [row for row in group if row["seconds"] is not None]
        title = case.rpartition(" ")[0]
        if len(ran) > 1 or len(title) > _SHORT:
            table.add_row(title)
            title = ""
        for row in ran:
            name = f"{title}  {row['implementation']}"
            table.add_row(name, *_numbers(row, has_sheet=has_sheet))
    return table


def _numbers(row: dict[str, Any], *, has_sheet: bool) -> list[str]:
    shares = ("of_roofline", "of_measured_roofline") if has_sheet else ("of_measured_roofline",)
    cells = f"{1e3 * row['seconds']:.3f}", _speed(row)
    return [*cells, *(f"{row[share]:.1%}" for share in shares)]


def _speed(row: dict[str, Any]) -> str:
    if row["implementation"] == row["baseline"]:
        return "baseline"
    if row["to_baseline"] is None:
        return f"{row['baseline']} did not run"
    return f"{row['to_baseline']:.3f}x {row['baseline']}"
