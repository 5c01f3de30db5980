"""The plan that a run gets when it names none."""

from dataclasses import replace

import pytest

from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.calibration import efficiency_of
from jaxscale.planner.model.parameters import parameter_groups
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.answer import answer
from jaxscale.planner.search.exhaustive import Problem
from jaxscale.planner.search.predict import predict
from jaxscale.planner.search.proposal import (
    Proposal,
    predict_plan,
    propose,
    run_problem,
    to_layout,
    to_plan,
)
from jaxscale.planner.vocabulary.layout import is_executable

SHAPE = ModelShape(
    name="8b", layers=32, embed=4096, heads=32, kv_heads=8, head_dim=128, mlp=14336, mlp_products=3,
    vocab=128256, tied=False,
)  # fmt: skip
TINY = replace(
    SHAPE, name="tiny", layers=2, embed=64, heads=8, kv_heads=8, head_dim=8, mlp=128, vocab=512
)


def problem(
    on: str | Cluster,
    base: Plan | None = None,
    *,
    shape: ModelShape = SHAPE,
    batch: int = 64,
    sequence: int = 4096,
) -> Problem:
    cluster = parse_cluster(on) if isinstance(on, str) else on
    workload = Workload(shape, batch, sequence)
    return run_problem(
        workload, parameter_groups(shape), cluster, base or Plan(), efficiency_of(cluster)
    )


def everything_runs(plan: Plan) -> bool:
    return True


def test_the_proposal_is_the_best_of_the_ranking() -> None:
    """`jaxscale plan` ranks the same space: its first is what a run gets."""
    asked = problem("h100:8x2")
    found = propose(asked, Plan(), everything_runs)
    best = answer(asked, top=1).best.prediction
    assert found is not None
    assert found.prediction == best
    assert is_executable(best.layout)
    assert found.plan.num_devices == 16
    assert not found.warning


def test_what_the_user_wrote_stays() -> None:
    base = Plan(
        remat="full",
        microbatches=4,
        precision="float32",
        kernels={"attention": "xla"},
        rules={"mlp": None},
    )
    asked = problem("h100:8", base)
    found = propose(asked, base, everything_runs)
    assert found is not None
    chosen = {axis: getattr(found.plan, axis) for axis in MESH_AXES}
    assert found.plan == base.model_copy(update=chosen)
    # float32 products run at half the rate of bfloat16, and the planner knows which are asked for.
    assert asked.stack.matmul_dtype == "float32"
    assert problem("h100:8", Plan(remat="full")).stack.matmul_dtype == "bfloat16"


def test_a_plan_that_the_trainer_refuses_is_passed_over() -> None:
    asked = problem("h100:8x2")
    ranks = [one.prediction for one in answer(asked, top=100).plans]
    refused = [to_plan(one.layout, Plan()) for one in ranks[:8]]
    found = propose(asked, Plan(), lambda plan: plan not in refused)
    assert found is not None
    assert found.prediction == ranks[8]


def test_nothing_runs_where_the_batch_divides_over_no_mesh() -> None:
    """Batch 3 over 8 devices: no data axis; 7 heads: no tensor axis."""
    odd = replace(TINY, heads=7, kv_heads=7)
    assert (
        propose(problem("cpu:8", shape=odd, batch=3, sequence=64), Plan(), everything_runs) is None
    )


def test_what_does_not_fit_is_refused_with_numbers_and_a_cluster_that_would_do() -> None:
    large = replace(SHAPE, name="70b", layers=80, embed=8192, heads=64, mlp=28672)
    asked = problem("h100:8", shape=large)
    with pytest.raises(
        UserError, match=r"no plan of 70b fits h100:8: .* GiB a device of 78\.\d+ GiB"
    ) as refused:
        propose(asked, Plan(), everything_runs)
    larger = str(refused.value).split(" would do")[0].split(". ")[-1]
    assert (
        propose(replace(asked, cluster=parse_cluster(larger)), Plan(), everything_runs) is not None
    )
    # 70.6e9 parameters x 16 bytes are 1.03 TiB: 8 devices have 0.6.
    assert parse_cluster(larger).num_devices > 12


def test_pins_are_named_where_they_leave_nothing() -> None:
    pinned = Plan(remat="none", microbatches=1)
    with pytest.raises(
        UserError, match=r"with plan\.microbatches=1, plan\.remat=none.*drop the keys"
    ):
        propose(problem("h100:1", pinned, batch=64), pinned, everything_runs)


def test_memory_within_the_error_of_the_prediction_is_the_second_choice() -> None:
    """Room for exactly what the only candidate takes: taken, with a warning; with a tenth more there is none."""
    only = Plan(remat="full", microbatches=1)
    asked = problem("h100:1", only, shape=TINY, batch=8, sequence=64)
    peak = predict_plan(asked, only).peak_bytes

    def proposed(room: float) -> Proposal:
        cluster = replace(asked.cluster, usable_hbm=room * peak)
        found = propose(replace(asked, cluster=cluster), only, everything_runs)
        assert found is not None
        return found

    assert "memory will be tight" in proposed(1.001).warning
    assert not proposed(1.1).warning
    with pytest.raises(UserError, match="no plan"):
        proposed(0.999)


def test_a_cpu_that_is_too_small_is_warned_about_and_used() -> None:
    host = replace(parse_cluster("cpu:8"), usable_hbm=2e5)
    asked = problem(host, shape=TINY, batch=8, sequence=64)
    found = propose(asked, Plan(), everything_runs)
    assert found is not None
    assert "may swap" in found.warning
    others = [
        predict(
            asked.workload,
            host,
            to_layout(Plan(fsdp=8, remat=remat)),
            asked.stack,
            groups=asked.groups,
        )
        for remat in ("none", "dots", "full")
    ]
    assert found.prediction.peak_bytes <= min(one.peak_bytes for one in others)


@pytest.mark.parametrize("devices", [1, 2, 8, 12])
def test_cpu_devices_get_one_axis_and_nothing_recomputed(devices: int) -> None:
    """No speed is claimed for them, so the simplest mesh is the best one; memory is plenty."""
    asked = problem(f"cpu:{devices}", shape=TINY, batch=24, sequence=64)
    found = propose(asked, Plan(), everything_runs)
    assert found is not None
    assert found.plan == propose(asked, Plan(), everything_runs).plan
    assert sum(size > 1 for size in found.plan.mesh_shape.values()) == (devices > 1)
    assert (found.plan.remat, found.plan.microbatches, found.plan.num_devices) == (
        "none",
        1,
        devices,
    )


def test_a_plan_by_hand_is_predicted_as_the_planner_would() -> None:
    asked = problem("h100:8")
    plan = Plan(fsdp=4, tensor=2, microbatches=2, remat="full")
    found = predict_plan(asked, plan)
    assert to_plan(found.layout, Plan()) == plan
    assert (
        found.peak_bytes < predict_plan(asked, plan.model_copy(update={"remat": "none"})).peak_bytes
    )


@pytest.mark.parametrize(
    "plan",
    [
        Plan(pipeline=4, data=2, microbatches=8, remat="full", schedule="zb-h1"),
        Plan(
            pipeline=2, fsdp=2, tensor=2, microbatches=4, schedule="interleaved", virtual_stages=3
        ),
        Plan(pipeline=2, data=4, microbatches=4, stage_layers=[20, 12]),
    ],
    ids=str,
)
def test_a_pipeline_by_hand_is_predicted_as_it_will_run(plan: Plan) -> None:
    found = predict_plan(problem("h100:8"), plan)
    assert found.num_devices == 8
    assert is_executable(found.layout)
    assert found.layout.stage_layers == tuple(plan.stage_layers)
    assert to_plan(found.layout, Plan(stage_layers=plan.stage_layers)) == plan
    assert sum(line.value for line in found.time if line.component == "pipeline bubble") > 0


def test_without_stages_their_keys_stay_as_they_were_given() -> None:
    base = Plan(schedule="zb-h1")
    assert to_plan(to_layout(Plan(fsdp=8)), base) == Plan.model_validate(
        {**Plan(fsdp=8, microbatches=1, remat="none").model_dump(), "schedule": "zb-h1"}
    )
    assert to_layout(Plan(fsdp=8, schedule="zb-h1")).schedule == "none"


def test_a_pipeline_is_proposed_where_it_is_asked_for() -> None:
    """Of the schedule, the chunks and the number of microbatches that are left open the fastest."""
    base = Plan(pipeline=4)
    found = propose(problem("h100:8x2", base), base, everything_runs)
    assert found is not None
    assert (found.plan.pipeline, found.plan.num_devices) == (4, 16)
    assert found.plan.microbatches >= 4
    assert found.plan.remat != "offload"
    fixed = Plan(pipeline=4, schedule="gpipe", microbatches=2)
    few = propose(problem("h100:8x2", fixed), fixed, everything_runs)
    assert few is not None
    assert (few.plan.schedule, few.plan.microbatches) == ("gpipe", 2)
    assert few.prediction.step_seconds > found.prediction.step_seconds


def test_stages_win_where_links_between_nodes_are_slow_and_memory_is_tight() -> None:
    """70B over 8 nodes that have a hundredth of their links: only what stages hand on crosses them cheaply."""
    large = replace(SHAPE, name="70b", layers=80, embed=8192, heads=64, mlp=28672)
    asked = problem("h100:8x8", shape=large, batch=512)
    slow = [
        replace(dim, bandwidth=dim.bandwidth / 100) if dim.slow else dim
        for dim in asked.cluster.dims
    ]
    crawling = replace(asked, cluster=replace(asked.cluster, dims=tuple(slow)))
    found = propose(crawling, Plan(), everything_runs)
    assert found is not None
    assert found.plan.pipeline == 8
    quick = propose(asked, Plan(), everything_runs)
    assert quick is not None
    assert quick.plan.pipeline < 8
