"""What the planner believes a model has, against the modules and the placement themselves."""

import math
from pathlib import Path

import jax
import pytest
from planner_cases import MODELS, shipped

from jaxscale.config.loading import load_model
from jaxscale.config.plan import Plan
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.models.families import resolve
from jaxscale.models.flops import training_flops_per_token
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.planner.costs.memory import SHARDED
from jaxscale.planner.model.flops import active_weights, step_flops
from jaxscale.planner.model.parameters import local_elements, num_parameters, parameter_groups
from jaxscale.planner.model.sizes import mesh_columns
from jaxscale.planner.model.source import groups_of, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.vocabulary.formula import Table
from jaxscale.planner.vocabulary.layout import AXES

FILES = sorted(MODELS.glob("*.yaml"))
PLANNED = MODELS.parent / "planned"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_matrices_by_formula_are_those_of_the_module(path: Path) -> None:
    section, _ = load_model(path, [])
    by_module = sum(
        group.all_elements for group in groups_of(section) if "fsdp" in group.split and group.split
    )
    by_formula = sum(
        group.all_elements for group in parameter_groups(shape_of(section, "")) if group.split
    )
    # Vectors (biases, norms of heads) are left out: the formulas know them by number only.
    assert by_formula == pytest.approx(by_module, rel=2e-4)


@pytest.mark.parametrize("path", FILES[::4], ids=lambda path: path.stem)
def test_flops_of_a_step_are_those_of_the_model(path: Path) -> None:
    section, _ = load_model(path, [])
    sequence = min(section.max_positions or 1024, 2048)
    expected = 8 * sequence * training_flops_per_token(resolve(section), sequence)
    assert step_flops(Workload(shape_of(section, ""), 8, sequence)) == pytest.approx(expected)


# (total, active) as the model cards print them, in billions.
PUBLISHED = {
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (141, 39),
    "deepseek-v3": (671, 37),
    "qwen3-235b-a22b": (235, 22),
    "qwen3-30b-a3b": (30.5, 3.3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_mixtures_of_experts_have_their_published_sizes(name: str) -> None:
    section, _ = load_model(PLANNED / f"{name}.yaml", [])
    total, active = PUBLISHED[name]
    shape = shape_of(section, name)
    assert num_parameters(groups_of(section)) / 1e9 == pytest.approx(total, rel=5e-3)
    # The embedding's rows are looked up, not multiplied: cards count them as active.
    with_embedding = active_weights(shape) + shape.vocab * shape.embed
    assert with_embedding / 1e9 == pytest.approx(active, rel=3e-2)


@pytest.mark.parametrize(
    "plan",
    [Plan(fsdp=8), Plan(data=2, fsdp=2, tensor=2), Plan(tensor=4, data=2), Plan(data=8)],
    ids=str,
)
def test_local_elements_are_those_that_the_placement_puts_on_a_device(plan: Plan) -> None:
    """Exact: the same rules, summed as formulas and asked of JAX's own shardings."""
    _, section = shipped("llama3-8b")
    description = blueprint(model_builder(section)).description
    shardings = place(plan, make_mesh(plan, jax.devices()[:8]), description).shardings(description)
    expected = sum(
        math.prod(shardings[path].shard_shape(spec.shape)) for path, spec in description.items()
    )
    sizes = dict.fromkeys(AXES, 1) | plan.mesh_shape
    table = Table({**sizes, "microbatches": 1, "virtual_stages": 1})
    formula = local_elements(groups_of(section), mesh_columns(), SHARDED)
    assert formula.over(table).max() == expected
