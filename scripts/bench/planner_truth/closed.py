"""Closed forms by the name of what is expected: a quantity's rule says itself what it needs to be given."""

import re
from collections.abc import Iterator

from planner_truth import (
    closed_collectives,
    closed_memory,
    closed_models,
    closed_pipeline,
    closed_rooflines,
    closed_sizes,
)
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.problem import Problem, Rule, Value

_TABLES = (
    closed_collectives.RULES,
    closed_rooflines.RULES,
    closed_memory.RULES,
    closed_sizes.RULES,
    closed_models.RULES,
    closed_pipeline.RULES,
)


def closed_form(case: Case, file: CaseFile, quantity: str) -> Value:
    """The value of a quantity that follows from what is given. Raises Unsupported with why it does not."""
    problem = Problem(case, file)
    reason = "no closed form has this name"
    for rule in rules_for(quantity):
        try:
            return rule(problem)
        except Unsupported as error:
            reason = str(error)
    raise Unsupported(reason)


def rules_for(quantity: str) -> Iterator[Rule]:
    yield from (table[quantity] for table in _TABLES if quantity in table)
    for pattern, rule in closed_models.PATTERNS.items():
        if re.fullmatch(pattern, quantity):
            yield rule
