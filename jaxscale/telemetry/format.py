"""Numbers as people read them; shared by the live display and the report."""

import itertools
import math
from collections.abc import Iterable

_BARS = "▁▂▃▄▅▆▇█"
_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def compact(value: float) -> str:
    """Three significant digits with a suffix: 12345 -> "12.3k", 7e9 -> "7B"."""
    for size, suffix in _LARGE:
        # 999.6 rounds to 1000: it belongs to the next suffix up.
        if abs(value) >= size * 0.9995:
            return f"{float(f'{value / size:.3g}'):g}{suffix}"
    return f"{value:.3g}"


def count(value: float) -> str:
    """A count with thousands separators; past a million with a suffix."""
    return compact(value) if abs(value) >= 1e6 else f"{value:,.0f}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def loss_text(value: float) -> str:
    """Four digits after the point, as differences between runs are in the third."""
    return f"{value:.4f}" if math.isfinite(value) else "nan"


def seconds_text(value: float) -> str:
    """0.0123 -> "12.3 ms", 2.5 -> "2.5 s"."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def duration(seconds: float) -> str:
    """1:02:03, or 4d 1:02:03."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}"
    return f"{days}d {clock}" if days else clock


def bytes_text(value: float) -> str:
    """Binary multiples: 1610612736 -> "1.5 GiB"."""
    for size, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.0f} B"


def sparkline(values: Iterable[float], *, width: int) -> str:
    """The course of `values` in at most `width` characters: means of equal stretches, lowest to highest."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    num = min(width, len(finite))
    edges = [len(finite) * i // num for i in range(num + 1)]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
