"""Measuring kernels and writing tables, with the interpreter in the place of a TPU."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jaxscale.cli.kernel_cases import Pass, cases_of_files
from jaxscale.cli.main import app
from jaxscale.cli.render.kernels import Device, as_rows, print_rows
from jaxscale.cli.tune import tuned
from jaxscale.errors import UserError
from jaxscale.kernels import rates
from jaxscale.kernels.attention.cases import cases as attention_cases
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.cases import Case
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.glu.cases import cases as glu_cases
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.kernels.measure import (
    Measurement,
    NothingToTune,
    Timing,
    inputs_of,
    measure,
    tune,
)
from jaxscale.kernels.ragged_matmul.cases import cases as ragged_cases
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import read

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
MIXTRAL = CONFIGS / "planned/mixtral-8x7b.yaml"
SMALL = ["model.embed_dim=32", "model.experts.mlp_dim=16", "model.experts.count=4"]
CPU, H200 = Target("cpu", "cpu"), Target("gpu", "NVIDIA H200")
INTERPRETED = Target("tpu", "TPU v5", interpreted=True)
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


def test_routed_products_and_attention_are_timed_with_their_inputs() -> None:
    attention = attention_cases(1, 32, 2, 1, 8, "float32", Form(scale=1.0))
    for case in (*ragged_cases(16, 8, 8, 2, "float32"), *attention):
        first, *others = measure(case, CPU, ONCE)
        assert first.implementation == case.baseline(CPU) == "xla"
        assert (first.seconds or 0) > 0
        assert all(each.seconds is None and each.why for each in others)


def test_tuning_keeps_the_fastest_configuration_beside_the_baseline() -> None:
    case = next(glu_cases(8, 16, 32, "bfloat16"))
    (entry,) = tune(case, INTERPRETED, ONCE)
    assert (entry.op, entry.implementation, entry.layout) == ("glu", "pallas_tpu", "up")
    assert (entry.bucket, entry.device_kind) == ("m8_n32_k16", "TPU v5")
    assert entry.config in [{}, *case.candidates["pallas_tpu"]]
    assert entry.seconds > 0
    assert entry.baseline_seconds > 0


def test_there_is_nothing_to_tune_where_no_kernel_serves() -> None:
    with pytest.raises(NothingToTune, match=r"nothing to tune for matmul on cpu: pallas_tpu"):
        tune(next(matmul_cases(8, 16, 32, "bfloat16")), CPU, ONCE)


def test_a_kernel_that_runs_with_no_configuration_says_why() -> None:
    """Nothing here can compile for a GPU."""
    case = replace(next(glu_cases(128, 128, 128, "bfloat16")), run=_only_xla_runs)
    with pytest.raises(NothingToTune, match="no configuration ran: pallas_gpu: not here"):
        tune(case, H200, ONCE)


def _only_xla_runs(choice: Choice, _target: Target) -> Callable[..., Any]:
    if choice.name != "xla":
        raise NotImplementedError("not here")
    return lambda *operands: operands


def test_an_op_with_nothing_to_tune_does_not_keep_others_from_it(tmp_path: Path) -> None:
    """Two calls of attention in float16, which no kernel takes on a TPU, and routed products beside them."""
    attention = list(attention_cases(1, 128, 2, 1, 8, "float16", Form(scale=1.0)))
    routed = list(ragged_cases(16, 8, 8, 2, "float32"))
    said = list(tuned([*attention, *routed], INTERPRETED, ONCE, tmp_path))
    assert "nothing to tune for attention on TPU v5: pallas_splash" in said[0]
    assert [line.split()[:2] for line in said[1:]] == [
        ["ragged_matmul", layout] for layout in ("nn", "nt", "tn")
    ]
    assert all("pallas_tpu" in line and "of xla's speed" in line for line in said[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["ragged_matmul"]
    entries = read(tmp_path / "ragged_matmul")
    assert {entry.bucket for entry in entries} == {"t16_i8_o8_g2"}


def test_that_nothing_at_all_was_tuned_is_an_error(tmp_path: Path) -> None:
    attention = list(attention_cases(1, 128, 2, 1, 8, "bfloat16", Form(scale=1.0)))
    said = []
    with pytest.raises(UserError, match="none of 2 calls has a kernel that ran"):
        said.extend(tuned(attention, H200, ONCE, tmp_path))
    assert not list(tmp_path.iterdir())


def test_inputs_are_random_and_do_not_repeat() -> None:
    case = next(matmul_cases(64, 64, 64, "bfloat16"))
    first, second = inputs_of(case, count=2)
    assert abs(float(jnp.std(first[0].astype(jnp.float32))) - 1) < 0.1
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], first[1])


def test_measured_rates_are_those_of_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of two square matrices of 2,048 rows, and 256 MiB read and written, had they taken a second each."""
    real = rates.measured_rates("bfloat16", seconds=0.0)
    assert real.flops > 0
    assert (real.bandwidth or 0) > 0
    monkeypatch.setattr(rates, "_fastest", lambda *_: 1.0)
    found = rates.measured_rates("bfloat16")
    assert found.flops == 2 * 2048**3
    assert found.bandwidth == 2 * 256 * 2**20


def _shown(case: Case, seconds: dict[str, float]) -> str:
    sheet = rates.Rates(2e12, 1e12, "data sheet")
    device = Device("NVIDIA H200", "bfloat16", sheet, rates.Rates(1e12, 5e11, "measured"))
    measured = [
        Measurement(
            case, e.name, {}, seconds.get(e.name), "" if e.name in seconds else "[a, b] is large"
        )
        for e in case.implementations
    ]
    stream = io.StringIO()
    print_rows(
        as_rows(measured, device, case.baseline(H200)), device, Console(file=stream, width=100)
    )
    return stream.getvalue()


def test_the_table_names_the_baseline_and_gives_both_shares() -> None:
    case = next(attention_cases(1, 8192, 32, 8, 128, "bfloat16", Form(scale=1.0)))
    # The same bound twice over: arithmetic at half the data sheet's rate takes twice as long.
    text = _shown(case, {"cudnn": case.flops / 1e12, "xla": 2 * case.flops / 1e12})
    assert re.search(r"cudnn +\d+\.\d+ +baseline +50\.0% +100\.0%", text)
    assert re.search(r"xla +\d+\.\d+ +0\.500x cudnn +25\.0% +50\.0%", text)
    assert "attention causal b=1 q=8192 k=8192 h=32 g=8 d=128" in text
    assert "not run: pallas_splash (attention): [a, b] is large" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_measures_and_gives_reasons() -> None:
    arguments = ["bench", "kernels", str(QUICKSTART), "--rows", "16", "--op", "glu", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert {row["case"].split()[1] for row in rows} == {"up", "down_gradient"}
    timed = [row for row in rows if row["seconds"] is not None]
    assert {row["implementation"] for row in timed} == {"xla"}
    assert {(row["baseline"], row["to_baseline"]) for row in timed} == {("xla", 1.0)}
    # No data sheet has this processor.
    assert {row["of_roofline"] for row in timed} == {None}
    assert all(row["of_measured_roofline"] > 0 for row in timed)


def test_routed_products_are_those_of_a_models_experts() -> None:
    cases = cases_of_files([str(MIXTRAL)], "ragged_matmul", Pass(8192))
    # Two experts a token; in and out of MLPs of 14,336, three products each.
    assert {case.call.tokens for case in cases} == {16384}
    assert {(c.call.inward, c.call.outward) for c in cases} == {(4096, 14336), (14336, 4096)}
    assert {case.call.groups for case in cases} == {8}
    assert len(cases) == 6
    dense = {c.call.sizes["n"] for c in cases_of_files([str(MIXTRAL)], "matmul", Pass(8192))}
    assert 14336 not in dense
    assert not [c for c in cases_of_files([str(MIXTRAL)], "", Pass(8192)) if c.op == "glu"]


def test_attention_is_of_whole_sequences_and_of_every_kind_of_layer() -> None:
    gemma = [str(CONFIGS / "models/gemma2-2b.yaml")]
    cases = cases_of_files(gemma, "attention", Pass(8192, sequence=2048))
    assert {case.call.sizes.get("w") for case in cases} == {None, 4096}
    assert {(case.call.batch, case.call.queries) for case in cases} == {(4, 2048)}
    assert {case.call.layout for case in cases} == {
        *("window_softcap", "causal_softcap", "window_softcap_documents"),
        "causal_softcap_documents",
    }
    # The run's own length where none is asked for, and no more than there are tokens.
    for rows, length in ((1024, 256), (64, 64)):
        (case, _) = cases_of_files([str(QUICKSTART)], "attention", Pass(rows))
        assert (case.call.batch, case.call.queries) == (rows // length, length)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([str(QUICKSTART), "--op", "ragged_matmul"], "none of these models calls ragged_matmul"),
        ([str(QUICKSTART), "--rows", "500", "--sequence", "200"], "--rows 400 or 600, or another"),
        ([str(QUICKSTART), "--op", "norm"], "there are matmul, glu, ragged_matmul, attention"),
        ([str(QUICKSTART), "--dtype", "int7"], "--dtype int7 is not measured"),
        (["model.mlp_dim=8"], "give the YAML file of a model"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)


def test_the_command_measures_experts_under_overrides() -> None:
    arguments = ["bench", "kernels", str(MIXTRAL), *SMALL, "--op", "ragged_matmul", "--rows", "8"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    timed = [row["case"] for row in json.loads(result.output) if row["seconds"] is not None]
    assert "ragged_matmul nn t=16 i=32 o=16 g=4 bfloat16" in timed
    assert len(timed) == 6


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
