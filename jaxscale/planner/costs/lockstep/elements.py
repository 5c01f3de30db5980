"""Parameters of a device of a pipeline in lockstep, where every stage holds the same shapes."""

from collections.abc import Sequence

from jaxscale.planner.costs.lockstep.setting import Pipeline
from jaxscale.planner.model.parameters import ParameterGroup, split_over
from jaxscale.planner.vocabulary.formula import Formula, Named, Number, if_less, rounded_up, total


def stage_elements(
    pipeline: Pipeline, axes: Sequence[str], groups: Sequence[ParameterGroup] | None = None
) -> Formula:
    """Elements of a stage's layers on one device, split over those of `axes` that split them.

    Places without a layer have them, too. groups: all, unless some are named.
    """
    held = pipeline.mesh.virtual_stages * pipeline.stages.places
    return Named(held * layer_elements(pipeline, axes, groups), "of the stage's layers")


def layer_elements(
    pipeline: Pipeline, axes: Sequence[str], groups: Sequence[ParameterGroup] | None = None
) -> Formula:
    """The same of one mean layer."""
    listed = pipeline.groups if groups is None else groups
    layers = [group for group in listed if group.place == "layer"]
    number = max((group.layers for group in layers), default=1)
    each = [Named(Number(group.all_elements / number), group.name) for group in layers]
    return total(
        [
            split_over(one, group, pipeline.mesh, axes)
            for one, group in zip(each, layers, strict=True)
        ]
    )


def table_elements(
    pipeline: Pipeline, axes: Sequence[str], tables: Sequence[ParameterGroup] | None = None
) -> Formula:
    """Elements of the vocabulary's tables on one device, split over `axes` alone. tables: all, or those named."""
    found = [
        split_over(_whole(group), group, pipeline.mesh, axes)
        for group in (pipeline.tables if tables is None else tables)
    ]
    return Named(total(found), "of the tables")


def other_elements(pipeline: Pipeline, axes: Sequence[str]) -> Formula:
    """Of what neither layers nor tables have: positions, the last norm. Every stage has it all."""
    others = [one for one in pipeline.groups if one.place != "layer" and not one.is_table]
    return total([split_over(_whole(group), group, pipeline.mesh, axes) for group in others])


def stored_elements(pipeline: Pipeline, axes: Sequence[str]) -> Formula:
    """What a device keeps between steps: tables are split over the stages, too, where their rows divide."""
    shared = table_elements(pipeline, axes) / table_shares(pipeline)
    return stage_elements(pipeline, axes) + shared + other_elements(pipeline, axes)


def table_shares(pipeline: Pipeline) -> Formula:
    """Over how many stages the tables are split: all, or none where their rows do not divide over them and `tensor`."""
    stages = pipeline.mesh.pipeline
    rows = Number(pipeline.shape.vocab, "rows") / (stages * pipeline.mesh.tensor)
    return if_less(rounded_up(rows) - rows, _WHOLE, stages, 1)


def _whole(group: ParameterGroup) -> Formula:
    return Named(Number(group.all_elements), group.name)


# Of a row; a quotient that is not whole misses by more.
_WHOLE = 1e-9


def split_elements(pipeline: Pipeline, axis: str, axes: Sequence[str]) -> Formula:
    """Of a stage's parameters, tables shared among stages, those that `axis` splits: on one device, split over `axes`
    alone.
    """
    split = [group for group in pipeline.groups if axis in group.split]
    tables = [group for group in split if group.is_table]
    shared = table_elements(pipeline, axes, tables) / table_shares(pipeline)
    return stage_elements(pipeline, axes, split) + shared
