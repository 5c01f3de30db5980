"""What a person sees while training: a live display in a terminal, one plain line a record elsewhere."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxscale.telemetry.format import compact, duration, loss_text, percent, sparkline

_SPARK_WIDTH = 24
_TITLE_WIDTH = 24
_RECENT = 240
_LEARNING = ("loss", "eval", "grad", "lr")
_SPEED = ("tok/s", "MFU", "s/step", "wait")
_STYLES = {"loss": "bold", "eval": "bold magenta"}


class Progress(Protocol):
    """Shows records as they are logged; `note` prints a line that stays."""

    def update(self, record: Mapping[str, Any]) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


def make_progress(
    *,
    total_steps: int,
    start_step: int = 0,
    title: str = "training",
    console: Console | None = None,
) -> Progress:
    """The live display where `console` (standard output) is a terminal, plain lines otherwise."""
    console = console or Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console, title=title, total_steps=total_steps, start_step=start_step)
    return PlainProgress(console, total_steps=total_steps)


class PlainProgress:
    """One line a record, for logs and pipes: no colors, no wrapping, no redrawing."""

    def __init__(self, console: Console, *, total_steps: int) -> None:
        self._console = console
        self._total_steps = total_steps

    def update(self, record: Mapping[str, Any]) -> None:
        parts = [f"{name} {value}" for name, value in _facts(record)]
        remaining = _seconds_left(record, self._total_steps)
        if remaining is not None:
            parts.append(f"{duration(remaining)} left")
        self.note("  ".join([f"step {record['step']}/{self._total_steps}", *parts]))

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass


class LiveProgress:
    """A bar, what the model learns, how fast: three lines redrawn in place; fits 80 columns."""

    def __init__(
        self, console: Console, *, title: str, total_steps: int, start_step: int = 0
    ) -> None:
        self._title = title
        self._total_steps = total_steps
        self._latest: dict[str, Any] = {"step": start_step}
        self._recent_losses: deque[float] = deque(maxlen=_RECENT)
        self._live = Live(self._render(), console=console, refresh_per_second=8)
        self._live.start()

    def update(self, record: Mapping[str, Any]) -> None:
        self._latest |= record
        if record.get("loss") is not None:
            self._recent_losses.append(record["loss"])
        self._live.update(self._render())

    def note(self, message: str) -> None:
        self._live.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> Group:
        facts = _facts(self._latest)
        course = sparkline(self._recent_losses, width=_SPARK_WIDTH)
        learning = [*_styled(facts, of=_LEARNING), Text(course, style="cyan")]
        speed = _styled(facts, of=_SPEED)
        return Group(self._bar_line(), Text("  ").join(learning), Text("  ").join(speed))

    def _bar_line(self) -> Table:
        step, total = self._latest["step"], self._total_steps
        bar = ProgressBar(
            total, step, style="bar.back", complete_style="cyan", finished_style="green"
        )
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True, max_width=_TITLE_WIDTH)
        line.add_column(ratio=1)
        line.add_column(justify="right", no_wrap=True)
        line.add_column(justify="right", no_wrap=True)
        where = Text(f"{step:,}/{total:,}  {percent(step / total)}")
        line.add_row(Text(self._title, style="bold"), bar, where, self._time_left())
        return line

    def _time_left(self) -> Text:
        remaining = _seconds_left(self._latest, self._total_steps)
        if self._latest["step"] >= self._total_steps:
            return Text("done", style="green")
        if remaining is None:
            return Text("starting", style="dim")
        return Text(f"{duration(remaining)} left", style="cyan")


def _styled(facts: Sequence[tuple[str, str]], *, of: Sequence[str]) -> list[Text]:
    """Names dimmed before their values, of those facts that are in `of`."""
    return [
        Text.assemble((f"{name} ", "dim"), (value, _STYLES.get(name, "")))
        for name, value in facts
        if name in of
    ]


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what is worth a glance, in order; what a record lacks is left out."""
    shown = (
        ("loss", "loss", loss_text),
        ("eval", "eval_loss", loss_text),
        ("bits/byte", "eval_bits_per_byte", loss_text),
        ("grad", "grad_norm", lambda v: f"{v:.2f}"),
        ("lr", "learning_rate", lambda v: f"{v:.1e}"),
        ("tok/s", "tokens_per_second", compact),
        ("MFU", "mfu", percent),
        ("s/step", "step_seconds", lambda v: f"{v:.3g}"),
        ("wait", "data_wait_seconds", lambda v: f"{v:.2g}"),
    )
    nonfinite = record.get("nonfinite", [])
    return [
        (name, "nan" if record.get(key) is None else form(record[key]))
        for name, key, form in shown
        if record.get(key) is not None or key in nonfinite
    ]


def _seconds_left(record: Mapping[str, Any], total_steps: int) -> float | None:
    if record.get("step_seconds") is None:
        return None
    return float((total_steps - record["step"]) * record["step_seconds"])
