"""What every formula of a pipeline in lockstep is written in."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale.planner.costs.lockstep.stages import Stages
from jaxscale.planner.model.parameters import ParameterGroup
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.sizes import Mesh, Sizes
from jaxscale.planner.vocabulary.layout import Remat, Schedule
from jaxscale.planner.vocabulary.stack import Stack


@dataclass(frozen=True)
class Pipeline:
    """Candidates of one schedule and one rematerialization policy, all with more than one stage."""

    shape: ModelShape
    groups: Sequence[ParameterGroup]
    sizes: Sizes
    stack: Stack
    stages: Stages
    remat: Remat
    schedule: Schedule

    @property
    def mesh(self) -> Mesh:
        return self.sizes.mesh

    @property
    def tables(self) -> list[ParameterGroup]:
        """Of the vocabulary: one, or two that are not tied."""
        return [group for group in self.groups if group.is_table]
