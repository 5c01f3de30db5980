"""Measured kernels as a table: time, ratio to XLA, share of the roofline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxscale.hardware import find_chip
from jaxscale.kernels.measure import BASELINE, Measurement
from jaxscale.telemetry.peak import device_peak


@dataclass(frozen=True)
class Device:
    """The device that was measured. flops, bandwidth: a second; bandwidth None where it is not known."""

    kind: str
    flops: float
    bandwidth: float | None
    source: str

    @staticmethod
    def here(dtype: str) -> "Device":
        """The first device of this process, with its rate for a dtype from the chip table or measured."""
        device = jax.devices()[0]
        peak, chip = device_peak(device, dtype), find_chip(device.device_kind)
        bandwidth = None if chip is None else chip.hbm_bandwidth
        return Device(device.device_kind, peak.flops_per_second, bandwidth, peak.provenance)


def as_rows(measured: Sequence[Measurement], device: Device) -> list[dict[str, Any]]:
    """The implementations of one case. Ratios: speed over XLA's, and over the roofline."""
    baseline = next((m.seconds for m in measured if m.implementation == BASELINE), None)
    return [_row(each, device, baseline) for each in measured]


def _row(each: Measurement, device: Device, baseline: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": each.case.name,
        "implementation": each.implementation,
        "seconds": each.seconds,
        "why_not": each.why,
    }
    if each.seconds is None:
        return row
    bound = each.case.roofline(device.flops, device.bandwidth)
    to_xla = None if baseline is None else baseline / each.seconds
    return row | {"to_xla": to_xla, "of_roofline": bound / each.seconds}


def print_rows(rows: Sequence[dict[str, Any]], device: Device) -> None:
    """To the terminal: what ran, then why others did not."""
    table = Table(title=f"{device.kind}: roofline of {device.flops / 1e12:.4g} TFLOP/s")
    table.add_column("case", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("speed / XLA's", justify="right")
    table.add_column("of roofline", justify="right")
    for row in rows:
        if row["seconds"] is None:
            continue
        ratio = "" if row["to_xla"] is None else f"{row['to_xla']:.3f}"
        numbers = f"{1e3 * row['seconds']:.3f}", ratio, f"{row['of_roofline']:.1%}"
        table.add_row(row["case"], row["implementation"], *numbers)
    console = Console()
    console.print(table)
    console.print(f"peak: {device.source}", highlight=False)
    for reason in dict.fromkeys(
        f"{r['implementation']}: {r['why_not']}" for r in rows if r["why_not"]
    ):
        console.print(f"not run: {reason}", highlight=False)
