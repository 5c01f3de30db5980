"""The planner's constants: one a chip family and one a software stack, from published step times.

    python scripts/bench/planner_fit --cases FILE [--half even|odd] [--without PREFIX]

Prints what to write into jaxscale/planner/calibration.py, and the errors of the rows that were not used. A constant is
the one that makes the median row of its group right; chip and stack take turns until they agree. Nothing is fitted to
a single row.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxscale.planner.calibration import efficiency_of, family_of
from jaxscale.planner.predict import predict
from planner_truth.cases import Case, CaseFile, Unsupported, load_cases
from planner_truth.quantities import Run, quantity, run_of

# What a row is fitted by, the most direct first; True: more is faster.
TIMES = (
    ("step_s", False),
    ("step_s_implied", False),
    ("tok_s_chip", True),
    ("tok_s_chip_vanilla_tp", True),
    ("tflops_per_chip", True),
    ("mfu", True),
)
ROUNDS = 4


@dataclass(frozen=True)
class Row:
    """A run with its published step time over the planner's."""

    case: Case
    run: Run
    family: str
    stack: str
    ratio: float


def rows_of(file: CaseFile) -> list[Row]:
    found = []
    for case in file.cases:
        if case.kind == "throughput":
            try:
                found.append(_row(case, file))
            except Unsupported:
                continue
    return [row for row in found if row is not None]


def _row(case: Case, file: CaseFile) -> Row | None:
    name = next((item for item in TIMES if item[0] in case.expected), None)
    if name is None or "mesh" not in case.given or "model" not in case.given:
        return None
    run = run_of(case, file)
    expected, predicted = case.expected[name[0]], float(quantity(run, name[0]))
    ratio = predicted / expected if name[1] else expected / predicted
    return Row(case, run, family_of(run.setting.cluster), run.setting.stack.name, ratio)


def seconds(row: Row, chip: float, stack: float) -> float:
    """The step with other constants than the ones in force."""
    setting = row.run.setting
    reached = efficiency_of(setting.cluster)
    changed = replace(reached, products=chip)
    prediction = predict(
        setting.workload,
        setting.cluster,
        setting.layout,
        replace(setting.stack, efficiency=stack),
        efficiency=changed,
    )
    return prediction.step_seconds


def fit(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """Constants of chips and of stacks."""
    chips = {row.family: efficiency_of(row.run.setting.cluster).products for row in rows}
    stacks = dict.fromkeys((row.stack for row in rows), 1.0)
    for _ in range(ROUNDS):
        _take_turns(rows, chips, lambda row: row.family, chips, stacks)
        _take_turns(rows, stacks, lambda row: row.stack, chips, stacks)
        _pin(chips, stacks, rows)
    return chips, stacks


def _take_turns(
    rows: Sequence[Row],
    constants: dict[str, float],
    group: Callable[[Row], str],
    chips: dict[str, float],
    stacks: dict[str, float],
) -> None:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[group(row)].append(row)
    for name, members in groups.items():
        ratios = [error(row, chips, stacks) for row in members]
        constants[name] /= statistics.median(ratios)


def error(row: Row, chips: dict[str, float], stacks: dict[str, float]) -> float:
    """Published over predicted step time, with these constants."""
    now = seconds(row, chips[row.family], stacks.get(row.stack, 1.0))
    return row.ratio * row.run.prediction.step_seconds / now


def _pin(chips: dict[str, float], stacks: dict[str, float], rows: Sequence[Row]) -> None:
    """Only the product of the two shows: the stacks' mean over the rows is 1, for a new stack to take the family's."""
    mean = statistics.geometric_mean([stacks[row.stack] for row in rows])
    for name in stacks:
        stacks[name] /= mean
    for name in chips:
        chips[name] *= mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--half", choices=("even", "odd"))
    parser.add_argument("--without", default="")
    options = parser.parse_args()
    rows = rows_of(load_cases(options.cases))
    used = [row for index, row in enumerate(rows) if _used(row, index, options)]
    chips, stacks = fit(used)
    for title, constants in (("chips", chips), ("stacks", stacks)):
        print(title, {name: round(value, 3) for name, value in sorted(constants.items())})
    for title, group in (
        ("fitted on", used),
        ("the others", [row for row in rows if row not in used]),
    ):
        _print_errors(title, group, chips, stacks)


def _used(row: Row, index: int, options: argparse.Namespace) -> bool:
    if options.without and row.case.prefix == options.without:
        return False
    return options.half is None or index % 2 == (options.half == "odd")


def _print_errors(
    title: str, rows: Sequence[Row], chips: dict[str, float], stacks: dict[str, float]
) -> None:
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.family in chips:
            wrong = abs(1 / error(row, chips, stacks) - 1)
            groups[row.case.prefix].append(wrong)
            groups["all"].append(wrong)
    for name, errors in sorted(groups.items()):
        ordered = sorted(errors)
        worst_tenth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        print(
            f"{title} {name:14} {len(errors):4} rows  median {statistics.median(errors):6.1%}  "
            f"90th percentile {worst_tenth:6.1%}  worst {ordered[-1]:6.1%}"
        )


if __name__ == "__main__":
    main()
