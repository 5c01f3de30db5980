"""Logical axes to mesh axes, and what is wrong before anything is compiled."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.models.description import ParamSpec
from jaxscale.parallel.errors import AxisCollision, NotDivisible, PlacementError
from jaxscale.parallel.mesh import auto_plan, check_batch, make_mesh
from jaxscale.parallel.placement import place
from jaxscale.parallel.rules import make_rules, partition_spec

FLOAT = np.dtype(np.float32)
MESH = {"data": 2, "fsdp": 4, "tensor": 8}
GATE = ParamSpec((4, 32, 64), FLOAT, ("layers", "embed", "mlp"))


def test_dims_go_where_the_table_says() -> None:
    assert partition_spec("gate", GATE.shape, GATE.axes, make_rules({}), MESH) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    both = partition_spec("rows", (16, 7), ("batch", "sequence"), make_rules({}), MESH)
    assert both == PartitionSpec(("data", "fsdp"), None)


def test_a_plan_can_change_the_table() -> None:
    rules = make_rules({"embed": ["data", "fsdp"], "mlp": None})
    assert partition_spec("gate", GATE.shape, GATE.axes, rules, MESH) == PartitionSpec(
        None, ("data", "fsdp"), None
    )


def test_a_dim_that_does_not_divide_names_the_numbers_and_what_would() -> None:
    with pytest.raises(NotDivisible) as caught:
        partition_spec(
            "layers/attention/key",
            (4, 32, 6, 8),
            ("layers", "embed", "kv_heads", "head_dim"),
            make_rules({}),
            MESH,
        )
    message = str(caught.value)
    for part in (
        "layers/attention/key",
        "'kv_heads' of size 6",
        "tensor=8",
        "nearest sizes that do: 8",
        "1, 2, 3, 6",
    ):
        assert part in message


def test_two_dims_on_one_mesh_axis_are_a_collision() -> None:
    with pytest.raises(AxisCollision, match="'embed' and 'mlp' both map to mesh axis 'tensor'"):
        partition_spec("gate", GATE.shape, GATE.axes, make_rules({"embed": "tensor"}), MESH)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mpl": None}, "plan.rules.mpl matches no dim of the model .did you mean 'mlp'"),
        ({"mlp": "tenser"}, "no mesh axis 'tenser' .did you mean 'tensor'"),
    ],
)
def test_rules_that_match_nothing_are_errors(rules: dict[str, str | None], message: str) -> None:
    plan = Plan(rules=rules)
    with pytest.raises(PlacementError, match=message):
        place(plan, make_mesh(plan, jax.devices()[:1]), {"gate": GATE})


def test_a_logical_axis_without_a_rule_is_an_error() -> None:
    own = ParamSpec((4, 4), FLOAT, ("embed", "channels"))
    with pytest.raises(PlacementError, match="logical axis 'channels' has no rule"):
        place(Plan(), make_mesh(Plan(), jax.devices()[:1]), {"own": own})


def test_a_mesh_has_to_use_all_devices() -> None:
    with pytest.raises(
        PlacementError,
        match=r"= 4 devices, but 8 are attached; these work: plan\.fsdp=4; plan\.data=1 plan\.fsdp=8",
    ):
        make_mesh(Plan(fsdp=2, tensor=2))


@pytest.mark.parametrize(
    ("plan", "batch", "length", "message"),
    [
        (
            Plan(data=4, microbatches=3),
            16,
            8,
            "microbatches=3 x data=4 x fsdp=1 = 12; nearest batches that do: 12 or 24",
        ),
        (Plan(fsdp=8), 4, 8, "nearest batches that do: 8$"),
        (
            Plan(tensor=8),
            8,
            12,
            "sequence_length=12 does not divide over tensor=8 .*nearest that does: 16",
        ),
    ],
)
def test_batches_have_to_divide(plan: Plan, batch: int, length: int, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        check_batch(plan, batch, length)


def test_auto_takes_fsdp_and_data_where_fsdp_does_not_divide() -> None:
    assert auto_plan({"gate": GATE}, 8, 16) == Plan(fsdp=8)
    odd = ParamSpec((4, 33, 64), FLOAT, GATE.axes)
    assert auto_plan({"gate": odd}, 8, 16) == Plan(data=8)
