"""What is to be trained: a model, the rows of a step, and their length."""

from dataclasses import dataclass

from jaxscale.planner.model.shape import ModelShape


@dataclass(frozen=True)
class Workload:
    """global_batch: sequences of one optimizer step. sequence: tokens of each."""

    shape: ModelShape
    global_batch: int
    sequence: int

    @property
    def tokens(self) -> int:
        return self.global_batch * self.sequence
