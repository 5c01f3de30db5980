"""Forms of one computation timed against each other, in turns, so that a busy moment meets them all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax

Form = Callable[..., Any]


@dataclass(frozen=True)
class Measured:
    """seconds: the median round's; fastest: of all rounds. temporary_bytes: as the compiler states them."""

    seconds: float
    fastest: float
    temporary_bytes: int
    argument_bytes: int

    def to_json(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "fastest": self.fastest,
            "temporary_bytes": self.temporary_bytes,
            "argument_bytes": self.argument_bytes,
        }


def measure(
    forms: Mapping[str, Form], arguments: tuple[Any, ...], *, rounds: int, repeats: int = 1
) -> dict[str, Measured]:
    """Times of compiled forms on the same arguments: `rounds` turns of `repeats` calls each, after one of warm-up."""
    compiled = {name: jax.jit(form).lower(*arguments).compile() for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for run in compiled.values():
        jax.block_until_ready(run(*arguments))
    for _ in range(rounds):
        for name, run in compiled.items():
            started = time.perf_counter()
            results = [run(*arguments) for _ in range(repeats)]
            jax.block_until_ready(results)
            times[name].append((time.perf_counter() - started) / repeats)
            del results
    return {name: _measured(compiled[name], each) for name, each in times.items()}


def _measured(compiled: Any, times: list[float]) -> Measured:
    memory = compiled.memory_analysis()
    return Measured(
        median(times), min(times), memory.temp_size_in_bytes, memory.argument_size_in_bytes
    )


def show(title: str, measured: Mapping[str, Measured], baseline: str, flops: float) -> None:
    """One line a form: its time, its rate, its time over the baseline's, its memory."""
    print(title)
    for name, each in measured.items():
        ratio = each.seconds / measured[baseline].seconds
        print(
            f"  {name:24} {each.seconds * 1e3:9.2f} ms (fastest {each.fastest * 1e3:9.2f})"
            f" {flops / each.seconds / 1e12:8.3f} TFLOP/s {ratio:6.2f} of {baseline}"
            f" {each.temporary_bytes / 1e6:9.1f} MB temporary"
        )
