"""A component of a step's time or of a device's memory, as a formula over candidates."""

from dataclasses import dataclass

from jaxscale.planner.vocabulary.formula import Formula, Table, larger
from jaxscale.planner.vocabulary.prediction import Line


@dataclass(frozen=True)
class Term:
    """seconds (or bytes) of a component; of a collective also its axis, the bytes it moves, and what of it is hidden.

    What counts is `amount` less `hidden`, at least 0.
    """

    component: str
    amount: Formula
    axis: str | None = None
    moved: Formula | None = None
    hidden: Formula | None = None

    @property
    def exposed(self) -> Formula:
        return self.amount if self.hidden is None else larger(self.amount - self.hidden, 0)


def line(term: Term, exposed: Formula, table: Table, row: int) -> Line:
    """A term of one candidate. `exposed` is the term's own, kept by the caller so that it is computed once."""
    amount, value = term.amount.at(table, row), exposed.at(table, row)
    moved = 0.0 if term.moved is None else term.moved.at(table, row)
    return Line(
        component=term.component,
        value=value,
        formula=term.amount.text(table, row),
        axis=term.axis,
        moved_bytes=moved,
        bandwidth=moved / amount if amount else 0.0,
        hidden_seconds=amount - value,
    )
