"""Which curves a run's report draws."""

from jaxscale.telemetry.report.charts import Chart, Line
from jaxscale.telemetry.report.run import Points, RunData
from jaxscale.telemetry.report.series import bucket_means, envelope, smoothed

_ENOUGH_TO_SMOOTH = 50


def charts_of(run: RunData) -> list[Chart]:
    """The charts for which the run has values."""
    charts = [
        _loss(run),
        Chart("Learning rate", _plain(run, "learning_rate", "rate"), "scientific", from_zero=True),
        Chart(
            "Gradient norm",
            _with_trend("norm", run.points("grad_norm"), color=1),
            "compact",
            log_above=10,
        ),
        Chart(
            "Tokens per second", _plain(run, "tokens_per_second", "rate"), "compact", from_zero=True
        ),
        _step_time(run),
        Chart("Model FLOPs utilization", _plain(run, "mfu", "MFU"), "percent", from_zero=True),
        _memory(run),
    ]
    return [chart for chart in charts if any(line.points for line in chart.lines)]


def _loss(run: RunData) -> Chart:
    evaluation = run.points("eval_loss")
    lines = _with_trend("training", run.points("loss"), color=1)
    if evaluation:
        thinned = envelope(evaluation)
        lines += [Line("evaluation", thinned, 2), Line("evaluation", thinned, 2, "dots")]
    return Chart("Loss", lines, "loss", note="nats per token, by step", wide=True, log_above=2.5)


def _plain(run: RunData, key: str, label: str) -> list[Line]:
    return [Line(label, envelope(run.points(key)), 1)]


def _with_trend(label: str, points: Points, *, color: int) -> list[Line]:
    """A noisy curve faintly, with its moving average on top; a short one as it is."""
    if len(points) < _ENOUGH_TO_SMOOTH:
        return [Line(label, points, color)]
    return [
        Line(label, envelope(points), color, "faint"),
        Line("smoothed", bucket_means(smoothed(points)), color),
    ]


def _step_time(run: RunData) -> Chart:
    """Seconds of a step, stacked: what is not waiting is computing."""
    total = bucket_means(run.points("step_seconds"))
    if not total:
        return Chart("Time of a step", [], "seconds")
    waiting = _aligned(run, "data_wait_seconds", total)
    saving = _aligned(run, "checkpoint_seconds", total)
    compute = [
        (s, max(t - w - c, 0.0)) for (s, t), w, c in zip(total, waiting, saving, strict=True)
    ]
    with_wait = [(s, v + w) for (s, v), w in zip(compute, waiting, strict=True)]
    with_saving = [(s, v + c) for (s, v), c in zip(with_wait, saving, strict=True)]
    return Chart(
        "Time of a step",
        [
            Line("compute", compute, 1, "area"),
            Line("data wait", with_wait, 2, "area", base=compute),
            Line("checkpoint", with_saving, 3, "area", base=with_wait),
        ],
        "seconds",
        from_zero=True,
    )


def _aligned(run: RunData, key: str, total: Points) -> list[float]:
    """Values of `key` in the same stretches as `total`, zero where it was not logged."""
    records = sorted(
        (r for r in run.records if r.get("step_seconds") is not None), key=lambda r: r["step"]
    )
    points = [(record["step"], float(record.get(key) or 0.0)) for record in records]
    values = [value for _, value in bucket_means(points)]
    assert len(values) == len(total)
    return values


def _memory(run: RunData) -> Chart:
    lines = []
    for label, key, color in (
        ("device", "device_memory_bytes", 1),
        ("host", "host_memory_bytes", 2),
    ):
        gibibytes = [(step, value / 2**30) for step, value in run.points(key)]
        if gibibytes:
            lines.append(Line(label, bucket_means(gibibytes), color))
    return Chart("Memory", lines, "gibibytes", from_zero=True)
