"""Measuring kernels and writing tables, with the interpreter in the place of a TPU."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxscale.cli.main import app
from jaxscale.errors import UserError
from jaxscale.kernels.glu.cases import cases as glu_cases
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.kernels.measure import Timing, inputs_of, measure, tune
from jaxscale.kernels.target import Target

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
CPU = Target("cpu", "cpu")
ONCE = Timing(groups=1, seconds=0.0)


def test_work_and_traffic_are_those_of_the_product() -> None:
    forward, by_input, by_weight = matmul_cases(8, 16, 32, "bfloat16")
    for case in (forward, by_input, by_weight):
        assert case.flops == 2 * 8 * 16 * 32
        assert case.moved == 2 * (8 * 16 + 16 * 32 + 8 * 32)
    assert [tuple(o.shape for o in c.operands) for c in (forward, by_input, by_weight)] == [
        ((8, 16), (16, 32)),
        ((8, 32), (16, 32)),
        ((8, 16), (8, 32)),
    ]
    up, down_gradient = glu_cases(8, 16, 32, "bfloat16")
    assert (up.flops, down_gradient.flops) == (4 * 8 * 16 * 32, 2 * 8 * 16 * 32)
    # 8 192 FLOPs at 1 024 a second take 8 s; 1 792 bytes at 112 a second take 16.
    assert forward.roofline(1024.0, None) == 8
    assert forward.roofline(1024.0, 112.0) == 16


def test_implementations_that_decline_say_why_and_the_rest_are_timed() -> None:
    case = next(matmul_cases(8, 16, 32, "float32"))
    found = {each.implementation: each for each in measure(case, CPU, ONCE)}
    assert list(found) == ["xla", "pallas_tpu", "pallas_gpu"]
    assert (found["xla"].seconds or 0) > 0
    assert found["pallas_tpu"].seconds is None
    assert "needs a TPU" in found["pallas_tpu"].why


def test_tuning_keeps_the_fastest_configuration_beside_the_baseline() -> None:
    case = next(glu_cases(8, 16, 32, "bfloat16"))
    (entry,) = tune(case, Target("tpu", "TPU v5", interpreted=True), ONCE)
    assert (entry.op, entry.implementation, entry.layout) == ("glu", "pallas_tpu", "up")
    assert (entry.bucket, entry.device_kind) == ("m8_n32_k16", "TPU v5")
    assert entry.config in [{}, *case.candidates["pallas_tpu"]]
    assert entry.seconds > 0
    assert entry.baseline_seconds > 0


def test_there_is_nothing_to_tune_where_no_kernel_serves() -> None:
    with pytest.raises(UserError, match=r"nothing to tune for matmul .* on cpu: pallas_tpu"):
        tune(next(matmul_cases(8, 16, 32, "bfloat16")), CPU, ONCE)


def test_inputs_are_random_and_do_not_repeat() -> None:
    first, second = inputs_of([jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)], count=2)
    assert abs(float(jnp.std(first[0].astype(jnp.float32))) - 1) < 0.1
    assert not np.array_equal(first[0], second[0])


def test_the_command_measures_and_gives_reasons() -> None:
    arguments = ["bench", "kernels", str(QUICKSTART), "--rows", "16", "--op", "glu", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert {row["case"].split()[1] for row in rows} == {"up", "down_gradient"}
    timed = [row for row in rows if row["seconds"] is not None]
    assert {row["implementation"] for row in timed} == {"xla"}
    assert {row["to_xla"] for row in timed} == {1.0}


def test_a_cpu_is_not_tuned() -> None:
    result = CliRunner().invoke(app, ["tune", str(QUICKSTART)])
    assert isinstance(result.exception, UserError)
    assert "nothing to tune on a CPU" in str(result.exception)


def test_kernels_of_a_cluster_that_is_not_there_are_printed_with_reasons() -> None:
    arguments = ["describe", str(QUICKSTART), "plan.fsdp=8", "--kernels-on", "h200:8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "pallas_gpu: not measured on NVIDIA H200" in result.output
    as_data = CliRunner().invoke(app, [*arguments, "--json"])
    assert {row["op"] for row in json.loads(as_data.output)} >= {"attention", "glu", "matmul"}


def test_a_plan_says_which_kernels_its_step_would_take() -> None:
    arguments = ["plan", str(QUICKSTART), "--on", "h200:8", "--kernels", "--executable"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"kernels of plan 1\nattention +xla", result.output)
    as_data = CliRunner().invoke(app, [*arguments, "--json"])
    named = {row["op"]: row["name"] for row in json.loads(as_data.output)["kernels"]}
    assert named["matmul"] == "xla"
