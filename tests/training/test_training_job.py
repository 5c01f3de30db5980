"""What follows from a configuration before anything runs."""

from pathlib import Path

import pytest
from run_cases import write_config

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.training.job import choose_plan


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], Plan(fsdp=8)),
        (["plan=auto"], Plan(fsdp=8)),
        (["plan.remat=full"], Plan(fsdp=8, remat="full")),
        (["plan.data=2", "plan.remat=full"], Plan(data=2, remat="full")),
        (["plan.tensor=1"], Plan()),
    ],
)
def test_a_plan_without_axes_takes_all_eight_devices(
    tmp_path: Path, overrides: list[str], wanted: Plan
) -> None:
    config = load_config(write_config(tmp_path), overrides)
    assert choose_plan(config, blueprint(model_builder(config.model))) == wanted
