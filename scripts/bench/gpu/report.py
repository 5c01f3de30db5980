"""Results as Markdown. Ratios are within a round, the two contenders one after the other on the same machine."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edge import Edge
from launch import Outcome

CONTENDERS = ("jaxscale", "torch")
_OF_MOST = ("tokens_per_second", "peak_gib")
_RUN_COLUMNS = (
    "stage",
    "contender",
    "variant",
    "tokens/s",
    "MFU",
    "peak GiB",
    "first step s",
    "first, last loss",
    "MHz",
    "W",
    "note",
)
# fp32 sums in another order differ by 2e-7 after 50 steps of this model (measured, two attentions on one CPU); TF32
# products would give some 1e-4. bfloat16 on CPU is 7e-4 from fp32.
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-3}


@dataclass(frozen=True)
class Parity:
    """Losses against those of the reference. difference: the largest relative one of any step."""

    precision: str
    difference: float
    first: float
    last: float

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCES[self.precision]


@dataclass(frozen=True)
class Largest:
    """The most rows of a contender in its leanest variant."""

    contender: str
    variant: str
    edge: Edge


@dataclass
class Results:
    """Everything of a benchmark.

    wanted: contenders that should have a result. parity_note: why there is no parity. skipped: runs there was no time
    for.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)
    parity_note: str = ""
    skipped: list[str] = field(default_factory=list)
    largest: list[Largest] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def ok(self, contender: str, *stages: str) -> list[Outcome]:
        """Runs of a contender that ended well, in the stages named (all, if none is)."""
        return [
            run
            for run in self.outcomes
            if run.contender == contender
            and run.status == "ok"
            and (not stages or run.stage in stages)
        ]

    def best(self, contender: str) -> Outcome | None:
        """The fastest run of the search, by tokens a second."""
        found = self.ok(contender, "search")
        return max(found, key=_rate, default=None)

    def equal_rows(self) -> dict[int, list[Outcome]]:
        """The fastest run of each contender with the same rows, for all numbers of rows that both ran with."""
        found: dict[int, list[Outcome]] = {}
        stages = ("search", "rounds", "largest")
        by_name = [_by_rows(self.ok(name, *stages)) for name in CONTENDERS]
        for rows in sorted(set.intersection(*map(set, by_name))):
            found[rows] = [max(runs[rows], key=_rate) for runs in by_name]
        return found

    def most_rows(self) -> list[dict[str, Any]]:
        """Of each contender what is known of the most rows that fit, and its run with the most that did."""
        found = []
        for each in self.largest:
            runs = _by_rows(self.ok(each.contender, "largest")).get(each.edge.fits, [])
            measured = {name: runs[0].result[name] for name in _OF_MOST} if runs else {}
            about = {"contender": each.contender, "variant": each.variant, "rows": str(each.edge)}
            found.append({**about, "fits": each.edge.fits, "fails": each.edge.fails, **measured})
        return found

    def versions(self) -> dict[str, str]:
        return {k: v for run in self.outcomes for k, v in run.result.get("versions", {}).items()}

    def problems(self) -> list[str]:
        """What makes a benchmark's exit status 1."""
        found = [
            f"parity: {each.precision} differs by {each.difference:.1e}, more than {TOLERANCES[each.precision]:.0e}"
            for each in self.parity
            if not each.passed
        ]
        found += [f"parity: {self.parity_note}"] if self.parity_note else []
        found += [
            f"no run of {name} ended well" for name in sorted(self.wanted) if not self.ok(name)
        ]
        return found


def _rate(run: Outcome) -> float:
    rate: float = run.result["tokens_per_second"]
    return rate


def _by_rows(runs: Iterable[Outcome]) -> dict[int, list[Outcome]]:
    found: dict[int, list[Outcome]] = {}
    for run in runs:
        found.setdefault(run.result["rows"], []).append(run)
    return found


def markdown(results: Results) -> str:
    sections = [
        "# One GPU: jaxscale against compiled PyTorch",
        _machine(results),
        _headline(results),
        _equal_rows(results),
        _largest(results),
        _parity(results),
        _runs(results),
        _left_out(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _machine(results: Results) -> str:
    facts = {**results.machine, **results.versions()}
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value)


def _headline(results: Results) -> str:
    """The best variant of each over its rounds, and the ratio of each round."""
    by_name = {name: _rounds(results, name) for name in CONTENDERS}
    if not all(by_name.values()):
        return ""
    lines = [_contender_row(name, runs) for name, runs in by_name.items()]
    pairs = zip(*by_name.values(), strict=False)
    ratios = [
        ours.result["tokens_per_second"] / theirs.result["tokens_per_second"]
        for ours, theirs in pairs
    ]
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    header = ("", "variant", "tokens/s", "s/step (least to most)", "MFU", "peak GiB", "rounds")
    return _table(header, lines) + f"\n\njaxscale / torch, tokens/s, by round: **{ratio}**"


def _rounds(results: Results, name: str) -> list[Outcome]:
    best = results.best(name)
    return results.ok(name, "rounds") or ([best] if best else [])


def _contender_row(name: str, runs: list[Outcome]) -> tuple[str, ...]:
    steps = [second for run in runs for second in run.result["step"]]
    tokens = statistics.median(run.result["tokens_per_second"] for run in runs)
    shares = [run.result["mfu"] for run in runs if run.result["mfu"] is not None]
    return (
        name,
        runs[0].variant,
        f"{tokens:,.0f}",
        f"{statistics.median(steps):.4f} ({min(steps):.4f} to {max(steps):.4f})",
        f"{statistics.median(shares):.1%}" if shares else "",
        _number(max(run.result["peak_gib"] or 0 for run in runs), 1),
        str(len(runs)),
    )


def _equal_rows(results: Results) -> str:
    rows = [
        (
            str(number),
            run.contender,
            run.variant,
            f"{_rate(run):,.0f}",
            _number(run.result["peak_gib"] or 0, 1),
        )
        for number, pair in results.equal_rows().items()
        for run in pair
    ]
    header = ("rows", "contender", "variant", "tokens/s", "peak GiB")
    return "Equal rows, the fastest run of each:\n\n" + _table(header, rows) if rows else ""


def _largest(results: Results) -> str:
    rows = [
        (
            found["contender"],
            found["variant"],
            found["rows"],
            str(found["fails"] or ""),
            f"{found['tokens_per_second']:,.0f}" if "tokens_per_second" in found else "",
            _number(found.get("peak_gib") or 0, 1),
        )
        for found in results.most_rows()
    ]
    header = ("", "variant", "most rows", "did not fit", "tokens/s", "peak GiB")
    return "The most rows that fit:\n\n" + _table(header, rows) if rows else ""


def _parity(results: Results) -> str:
    if not results.parity:
        return ""
    rows = [
        (
            each.precision,
            f"{each.difference:.1e}",
            f"{TOLERANCES[each.precision]:.0e}",
            "yes" if each.passed else "**no**",
            f"{each.first:.3f} to {each.last:.3f}",
        )
        for each in results.parity
    ]
    header = ("this device", "largest relative difference", "allowed", "passed", "loss")
    return "Losses of a small model against fp32 on CPU, every step:\n\n" + _table(header, rows)


def _runs(results: Results) -> str:
    rows = [_run_row(run) for run in results.outcomes if run.contender in CONTENDERS]
    return "Every run:\n\n" + _table(_RUN_COLUMNS, rows) if rows else ""


def _run_row(run: Outcome) -> tuple[str, ...]:
    head = (f"{run.stage} {run.round}", run.contender, run.variant)
    if run.status != "ok":
        return (*head, run.status, *[""] * 6, run.error.replace("|", "/"))
    result, losses = run.result, run.result["losses"]
    return (
        *head,
        f"{result['tokens_per_second']:,.0f}",
        "" if result["mfu"] is None else f"{result['mfu']:.1%}",
        _number(result["peak_gib"] or 0, 1),
        _number(result["first_step"], 1),
        f"{losses[0]:.3f}, {losses[-1]:.3f}",
        _number(run.gpu.get("sm_mhz", 0), 0),
        _number(run.gpu.get("watts", 0), 0),
        result["note"],
    )


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value else ""


def _left_out(results: Results) -> str:
    lines = [f"- skipped: {name}" for name in results.skipped]
    return "\n".join([*lines, *(f"- **{problem}**" for problem in results.problems())])


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
