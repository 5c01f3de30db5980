"""Charts as HTML: geometry in an SVG that stretches with the page, words beside it that do not.

The drawing is complete without JavaScript; `report.js` adds a cursor that reads values off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from jaxscale.telemetry.format import compact, percent, seconds_text
from jaxscale.telemetry.report.run import Points
from jaxscale.telemetry.report.series import linear_ticks, log_ticks

_UNIT = 1000  # The drawing's own coordinates, both ways; the page stretches them.

# How values are written, by a name that report.js knows too.
FORMATS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"{value:.4f}",
    "compact": compact,
    "scientific": lambda value: f"{value:.2e}",
    "seconds": seconds_text,
    "percent": percent,
    "gibibytes": lambda value: f"{value:.3g} GiB",
}
Kind = Literal["line", "faint", "dots", "area"]


@dataclass(frozen=True)
class Line:
    """One curve; `color` is a number of the palette. An area's `base` is the curve it stands on."""

    label: str
    points: Points
    color: int
    kind: Kind = "line"
    base: Points = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """`log_above`: a logarithmic axis where the highest value is this many times the lowest."""

    title: str
    lines: list[Line]
    form: str
    note: str = ""
    wide: bool = False
    from_zero: bool = False
    log_above: float = math.inf


@dataclass(frozen=True)
class Axes:
    """Maps steps and values into the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def across(self, step: float) -> float:
        """Fraction of the width from the left."""
        return (step - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, value: float) -> float:
        """Fraction of the height from the bottom."""
        low, high = self.y
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        return log_ticks(*self.y) if self.log else linear_ticks(*self.y)


def render_chart(chart: Chart, number: int) -> str:
    """The chart as a `<figure>`; its lines must not all be empty."""
    axes = fit_axes(chart)
    note = ", ".join(filter(None, [chart.note, "log scale" if axes.log else ""]))
    legend = "".join(_legend_item(line, chart.form, i) for i, line in enumerate(chart.lines))
    return (
        f'<figure class="chart{" wide" if chart.wide else ""}">'
        f"<figcaption><h3>{escape(chart.title)} <small>{escape(note)}</small></h3>"
        f'<ul class="legend">{legend}</ul></figcaption>'
        f'<div class="plot" tabindex="0" role="img" data-chart="{number}" '
        f'aria-label="{escape(describe(chart))}">'
        f"{_drawing(chart, axes)}{_labels(axes, chart.form)}"
        '<div class="cursor" hidden><span></span></div></div></figure>'
    )


def chart_data(chart: Chart) -> dict[str, Any]:
    """What `report.js` needs to read values off a chart."""
    lines = [[[step, float(f"{v:.5g}")] for step, v in _own(line)] for line in chart.lines]
    return {"x": fit_axes(chart).x, "form": chart.form, "lines": lines}


def describe(chart: Chart) -> str:
    """The chart in words, for those who hear the page."""
    form = FORMATS[chart.form]
    curves = [
        f"{line.label} from {form(own[0][1])} at step {own[0][0]:,} to {form(own[-1][1])} "
        f"at step {own[-1][0]:,}"
        for line, own in ((line, _own(line)) for line in chart.lines)
        if own
    ]
    return f"{chart.title} by training step: " + "; ".join(curves)


def fit_axes(chart: Chart) -> Axes:
    """Axes that hold every point, with a little air above and below."""
    points = [point for line in chart.lines for point in line.points]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    x = _step_range(min(steps), max(steps))
    low, high = min(values), max(values)
    if 0 < low * chart.log_above <= high:
        return Axes(x, (low / 1.04, high * 1.04), log=True)
    if chart.from_zero:
        low = min(low, 0.0)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axes(x, (0.0 if chart.from_zero and low == 0 else low - air, high + air), log=False)


def _step_range(first: int, last: int) -> tuple[float, float]:
    """From zero where the curve starts near it, so that the axis says so."""
    start = 0 if first <= 0.05 * last else first
    return (start, last) if start < last else (start - 0.5, last + 0.5)


def _own(line: Line) -> Points:
    """A line's own values: an area's height is what it adds to its base."""
    if not line.base:
        return line.points
    pairs = zip(line.points, line.base, strict=True)
    return [(step, value - under) for (step, value), (_, under) in pairs]


def _legend_item(line: Line, form: str, number: int) -> str:
    own = _own(line)
    latest = FORMATS[form](own[-1][1]) if own else ""
    return (
        f'<li class="c{line.color} {line.kind}"><i></i>{escape(line.label)} '
        f'<output data-line="{number}">{escape(latest)}</output></li>'
    )


def _drawing(chart: Chart, axes: Axes) -> str:
    grid = "".join(f'<path class="grid" d="M0 {_y(axes, tick)}H{_UNIT}"/>' for tick in axes.ticks())
    curves = "".join(
        f'<path class="{line.kind} c{line.color}" d="{_path(line, axes)}"/>'
        for line in chart.lines
        if line.points
    )
    return (
        f'<svg viewBox="0 0 {_UNIT} {_UNIT}" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{curves}</svg>"
    )


def _path(line: Line, axes: Axes) -> str:
    if line.kind == "dots":
        # Strokes of no length with round caps stay circles however the drawing is stretched.
        return "".join(f"M{_xy(axes, point)}h0" for point in line.points)
    there = "L".join(_xy(axes, point) for point in line.points)
    if line.kind != "area":
        return f"M{there}" + ("h0" if len(line.points) == 1 else "")
    floor = line.base or [(step, 0.0) for step, _ in line.points]
    return f"M{there}L" + "L".join(_xy(axes, point) for point in reversed(floor)) + "Z"


def _labels(axes: Axes, form: str) -> str:
    y = "".join(
        f'<span class="y" style="bottom:{100 * axes.up(tick):.2f}%">{_tick_text(tick, form)}</span>'
        for tick in axes.ticks()
    )
    x = "".join(
        f'<span class="x" style="left:{100 * axes.across(tick):.2f}%">{compact(tick)}</span>'
        for tick in linear_ticks(*axes.x)
        if tick == int(tick)
    )
    return f'<div class="ticks" aria-hidden="true">{y}{x}</div>'


def _tick_text(tick: float, form: str) -> str:
    if form == "seconds":
        return seconds_text(tick) if tick else "0"
    if form == "gibibytes":
        return f"{tick:g} GiB" if tick else "0"
    if form == "percent":
        return f"{100 * tick:g}%"
    if form == "scientific" and tick:
        mantissa, exponent = f"{tick:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return compact(tick)


def _xy(axes: Axes, point: tuple[int, float]) -> str:
    return f"{_UNIT * axes.across(point[0]):.1f} {_y(axes, point[1])}"


def _y(axes: Axes, value: float) -> str:
    return f"{_UNIT * (1 - axes.up(value)):.1f}"
