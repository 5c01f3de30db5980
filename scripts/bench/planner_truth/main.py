"""`planner_accuracy --cases FILE [--json]`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from planner_truth.cases import load_cases
from planner_truth.evaluate import evaluate_case
from planner_truth.output import document, text
from planner_truth.scoring import score


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="planner_accuracy", description=__doc__)
    parser.add_argument(
        "--cases",
        type=Path,
        required=True,
        help="a file of cases, as tests/data/planner_truth/cases.json",
    )
    parser.add_argument("--json", action="store_true", help="every case and the summary as JSON")
    parser.add_argument("--prefix", default="", help="only cases whose id begins so")
    options = parser.parse_args(arguments)
    try:
        file = load_cases(options.cases)
    except (OSError, ValueError, KeyError) as error:
        print(f"planner_accuracy: {options.cases}: {error!r}", file=sys.stderr)
        return 2
    chosen = [case for case in file.cases if case.id.startswith(options.prefix)]
    scores = [score(case, evaluate_case(case, file)) for case in chosen]
    print(json.dumps(document(scores), indent=1) if options.json else text(scores))
    return 0
