"""The GPU benchmark on CPU: it runs to its end, asks for no package that a bare machine lacks, and is fair."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts/bench/gpu"
HAS_TORCH = importlib.util.find_spec("torch") is not None
# What a machine with jax, flax, optax, orbax and torch has, and pydantic, which README.md says to carry.
THERE = {"jax", "flax", "optax", "numpy", "einops", "jaxtyping", "yaml", "pydantic", "torch"}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(BENCH)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


IMPORTS = """
import builtins, sys
real, seen = builtins.__import__, set()
own = {"ours", "variants", "contender"}

def watching(name, scope=None, *rest, **kwargs):
    importer = (scope or {}).get("__name__", "").partition(".")[0]
    if importer in {"jaxscale", *own}:
        seen.add(name.partition(".")[0])
    return real(name, scope, *rest, **kwargs)

builtins.__import__ = watching
import ours
from variants import SIZES, parse_variant
losses = ours.losses(SIZES["tiny"], parse_variant("rows=2,remat=dots"), 2)
assert losses[1] < losses[0]
print(" ".join(sorted(seen - set(sys.stdlib_module_names) - own - {"jaxscale"})))
"""


@pytest.mark.slow
def test_our_step_imports_only_what_a_bare_machine_has_or_is_carried() -> None:
    done = run_python("-c", IMPORTS)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "pydantic" in imported, "the watch saw nothing"
    assert imported <= THERE


SAME_LOSS = """
from dataclasses import replace

import torch
from ours import Trainer
from torch_llama import Style, angles, initial_weights, loss
from variants import SIZES, parse_variant, text

size = SIZES["small"]
arch = size.architecture()
trainer = Trainer(size, parse_variant("rows=1"))
# Fresh weights attend to everything alike: with larger ones the loss depends on positions too.
larger = {path: 4 * value if value.ndim > 1 else value for path, value in trainer.state.params.items()}
trainer.state = replace(trainer.state, params=larger)
ours = {path: torch.from_numpy(value.__array__().copy()) for path, value in trainer.state.params.items()}
weights = initial_weights(arch, torch.device("cpu"))
with torch.no_grad():
    for name, weight in weights.items():
        layer, _, part = name.rpartition("/")
        if not layer:
            path = {"embedding": "embedding/table", "norm": "final_norm/scale"}[part]
            weight.copy_(ours[path])
            continue
        group = "mlp" if part in {"gate", "up", "down"} else "attention"
        path = f"layers/{part}/scale" if part.endswith("norm") else f"layers/{group}/{part}"
        value = ours[path][int(layer)]
        inward = value.shape[0] if part != "output" else value.shape[0] * value.shape[1]
        weight.copy_(value if value.ndim == 1 else value.reshape(inward, -1).T)
    batch = {name: torch.from_numpy(array).long() for name, array in text(size, 1, 0).items()}
    by = angles(arch, size.sequence, torch.device("cpu"))
    for chunk in (0, 100):
        style = Style(torch.float32, chunk=chunk, repeat=chunk > 0, checkpointed=chunk > 0)
        print(loss(weights, **batch, by=by, arch=arch, style=style).item())
print(float(trainer.advance(trainer.batch(0))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_both_contenders_compute_the_same_loss_from_the_same_weights() -> None:
    done = run_python("-c", SAME_LOSS)
    assert done.returncode == 0, done.stderr
    whole, chunked, ours = map(float, done.stdout.split())
    # fp32 rounding through four layers, averaged over 256 tokens: 1e-6 and less of the loss.
    assert whole == pytest.approx(ours, rel=1e-5)
    assert chunked == pytest.approx(ours, rel=1e-5)


def bench(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run_python(str(BENCH / "run.py"), "--out", str(out), "--smoke", *arguments)
    assert (out / "gpu_step.json").exists(), done.stderr
    return done.returncode, json.loads((out / "gpu_step.json").read_text())


@pytest.mark.slow
def test_all_stages_run_and_a_variant_that_fails_is_recorded(tmp_path: Path) -> None:
    torch = "rows=2,chunk=0,torch_mode=eager" if HAS_TORCH else ""
    status, found = bench(
        tmp_path,
        *("--stages", "search,parity,rounds,ablate,trace", "--rounds", "1", "--torch", torch),
        *("--ours", "rows=2;rows=2,nonsense=1", "--ablate", "rows=2,documents=packed"),
    )
    assert status == 0, (tmp_path / "gpu_step.log").read_text()
    ended = {(run["stage"], run["contender"], run["status"]) for run in found["runs"]}
    wanted = {
        ("search", "jaxscale", "ok"),
        ("search", "jaxscale", "failed"),
        ("parity", "losses", "ok"),
        ("rounds", "jaxscale", "ok"),
        ("ablate", "jaxscale", "ok"),
        ("trace", "jaxscale", "ok"),
    }
    assert ended >= wanted
    assert (("rounds", "torch", "ok") in ended) == HAS_TORCH
    assert [each["precision"] for each in found["parity"]] == ["float32", "bfloat16"]
    assert found["parity"][0]["difference"] == 0, "fp32 on CPU against itself"
    assert found["parity"][1]["difference"] > 0, "bfloat16 is not fp32"
    assert len((tmp_path / "trace_ops.md").read_text().splitlines()) > 5
    assert "nonsense" in (tmp_path / "gpu_step.md").read_text()


def test_what_there_is_no_time_for_is_named_and_fails_the_benchmark(tmp_path: Path) -> None:
    status, found = bench(tmp_path, "--minutes", "0", "--ours", "rows=2", "--torch", "")
    assert status == 1
    assert found["runs"] == []
    assert any("rows=2" in name for name in found["skipped"])
    assert any("jaxscale" in problem for problem in found["problems"])


def test_losses_that_differ_by_more_than_allowed_fail_the_benchmark() -> None:
    code = "from report import Parity, Results; print(Results(parity=[Parity('float32', 1e-4, 7, 4)]).problems())"
    done = run_python("-c", code)
    assert "parity" in done.stdout, done.stderr
