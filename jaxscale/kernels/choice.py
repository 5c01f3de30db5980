"""Which implementation of an op runs, and why the others do not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxscale.kernels.target import Target


@dataclass(frozen=True)
class Choice:
    """name: the implementation that runs. declined: reason by name for each one that was considered before it.

    why: what decided. op, call: of what it is a choice, in words. config: of the kernel, where a table gives one.
    target: for which it was made.
    """

    name: str
    declined: Mapping[str, str]
    why: str = ""
    op: str = ""
    call: str = ""
    config: Mapping[str, int] = field(default_factory=dict)
    target: Target | None = None

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.declined.items())
        return f"{self.name} ({reasons})" if reasons else self.name
