"""The report's page: headline, curves, samples, and what the run was given."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

from jaxscale.telemetry.report.charts import chart_data, render_chart
from jaxscale.telemetry.report.curves import charts_of
from jaxscale.telemetry.report.headline import Tile, convention, status, tiles
from jaxscale.telemetry.report.prediction import prediction_section
from jaxscale.telemetry.report.run import RunData, Sample
from jaxscale.telemetry.report.series import evenly_chosen

_MAX_SAMPLES = 12
_MAX_SAMPLE_CHARACTERS = 6000
_MAX_EVALUATIONS = 100
_FEW = 10
_YAML_LINE = re.compile(r"^(\s*(?:- )*)([\w.\-]+)(:)(.*)$")


def render(run: RunData) -> str:
    """The whole page, self-contained: its policy forbids the browser to fetch anything."""
    charts = charts_of(run)
    script = _asset("report.js")
    return Template(_asset("page.html")).substitute(
        title=escape(run.name),
        policy=_policy(script),
        style=_asset("report.css"),
        script=script,
        data=embedded_json([chart_data(chart) for chart in charts]),
        header=_header(run),
        tiles=render_tiles(tiles(run)),
        convention=escape(convention(run)),
        charts="".join(render_chart(chart, i) for i, chart in enumerate(charts)) or _no_curves(),
        details=details_of(run),
    )


def details_of(run: RunData) -> str:
    """What is below the curves: samples, evaluations, and what the run was given."""
    return "".join(
        [
            section("Samples", _samples(run.samples)),
            section("Evaluations", _evaluations(run)),
            section("Prediction", prediction_section(run)),
            section("Plan", _yaml(run.plan)),
            section("Configuration", _yaml(run.config)),
            section("Summary", _table(run.summary)),
            section("Environment", _table(run.environment)),
        ]
    )


def _asset(name: str) -> str:
    return (resources.files("jaxscale.telemetry.report") / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Content security policy: our script and no other, inline styles, nothing from outside."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def embedded_json(content: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _header(run: RunData) -> str:
    kind, words = status(run)
    return (
        f"<p class='kind'>Training run</p><h1>{escape(run.name)}</h1>"
        f"<p class='status {kind}'>{escape(words)}</p>"
    )


def render_tiles(headline: list[Tile]) -> str:
    return "".join(
        f"<div class='tile'><dt>{escape(tile.label)}</dt><dd>{escape(tile.value)}"
        f"<small>{escape(tile.note)}</small></dd></div>"
        for tile in headline
    )


def _no_curves() -> str:
    return "<p class='empty'>No metrics: the run ended before its first log.</p>"


def section(title: str, content: str) -> str:
    if not content:
        return ""
    name = title.lower()
    return f"<section aria-labelledby='{name}'><h2 id='{name}'>{title}</h2>{content}</section>"


def _samples(samples: list[Sample]) -> str:
    """The latest sample open, others folded."""
    chosen = evenly_chosen(samples, _MAX_SAMPLES)[::-1]
    left_out = len(samples) - len(chosen)
    note = f"<p class='note'>{left_out} more in samples/.</p>" if left_out else ""
    return "".join(_sample(s, opened=s is chosen[0]) for s in chosen) + note


def _sample(sample: Sample, *, opened: bool) -> str:
    text = sample.text[:_MAX_SAMPLE_CHARACTERS]
    cut = len(sample.text) - len(text)
    note = f"<p class='note'>{cut:,} more characters in {escape(sample.file)}</p>" if cut else ""
    return (
        f"<details{' open' if opened else ''}><summary>Step {sample.step:,}</summary>"
        f"<pre class='sample'>{escape(text)}</pre>{note}</details>"
    )


def _evaluations(run: RunData) -> str:
    records = [record for record in run.records if "eval_loss" in record]
    if not records:
        return ""
    columns = (
        ("Loss", "eval_loss"),
        ("Bits per byte", "eval_bits_per_byte"),
        ("Perplexity", "eval_perplexity"),
    )
    head = "".join(f"<th scope='col'>{label}</th>" for label, _ in columns)
    rows = "".join(
        f"<tr><th scope='row'>{record['step']:,}</th>"
        + "".join(f"<td>{_cell(record.get(key))}</td>" for _, key in columns)
        + "</tr>"
        for record in evenly_chosen(records, _MAX_EVALUATIONS)
    )
    return (
        f"<details{' open' if len(records) <= _FEW else ''}>"
        f"<summary>{len(records):,} evaluations</summary><div class='scroll'><table>"
        f"<thead><tr><th scope='col'>Step</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4f}"


def _yaml(text: str) -> str:
    if not text.strip():
        return ""
    lines = "\n".join(_yaml_line(line) for line in text.rstrip().splitlines())
    return f"<pre class='yaml'>{lines}</pre>"


def _yaml_line(line: str) -> str:
    """One line escaped, its key set off from its value."""
    found = _YAML_LINE.match(line)
    if not found:
        return escape(line)
    indent, key, colon, value = found.groups()
    return f"{indent}<b>{escape(key)}</b>{colon}{escape(value)}"


def _table(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(str(key).replace('_', ' '))}</th><td>{_value(value)}</td></tr>"
        for key, value in values.items()
    )
    return f"<div class='scroll'><table class='facts'><tbody>{rows}</tbody></table></div>"


def _value(value: Any) -> str:
    """A JSON value as words: one line for each entry of an object."""
    if isinstance(value, Mapping):
        return "<br>".join(f"{escape(str(k))} {_value(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        return escape(", ".join(str(item) for item in value)) or "-"
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
