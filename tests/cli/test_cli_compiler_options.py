"""Options of XLA in a run's plan reach its compiler, and a wrong one is the user's to mend."""

import json
from pathlib import Path

import pytest
from cli_cases import call, succeed, write_config

SHORT = ("training.steps=2", "training.eval_batches=1", "telemetry.log_every=1")
OPTIONS = "plan.compiler_options"


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


def test_a_run_takes_options_of_the_compiler_and_they_reach_it(tmp_path: Path) -> None:
    """XLA writes what it compiles where the option says; the run trains as without."""
    config, dump = write_config(tmp_path), tmp_path / "dump"
    plain, told = tmp_path / "plain", tmp_path / "told"
    said = f"{OPTIONS}={{xla_dump_to: {dump}, xla_dump_hlo_as_text: true}}"
    succeed("train", config, "--run-dir", told, said, *SHORT)
    succeed("train", config, "--run-dir", plain, *SHORT)
    assert [path for path in dump.iterdir() if "jit_step" in path.name]
    assert losses(told) == losses(plain) != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "{xla_cpu_enable_fast_min_mx: true}",
            "plan.compiler_options.xla_cpu_enable_fast_min_mx: the compiler for cpu does not know this option",
        ),
        (
            "{xla_cpu_enable_fast_min_max: often}",
            "plan.compiler_options: the compiler says: INVALID_ARGUMENT: While setting option",
        ),
    ],
)
def test_what_the_compiler_does_not_take_is_said_in_one_line(
    tmp_path: Path, options: str, message: str
) -> None:
    config = write_config(tmp_path)
    answer = call("train", config, "--run-dir", tmp_path / "run", f"{OPTIONS}={options}", *SHORT)
    assert answer.status == 2
    assert message in " ".join(answer.err.split())
    assert "Traceback" not in answer.out + answer.err
