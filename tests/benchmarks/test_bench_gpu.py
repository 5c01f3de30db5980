"""The GPU benchmark on CPU: it runs to its end, asks for no package that a bare machine lacks, and is fair."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts/bench/gpu"))

from defaults import SIZES as DEFAULTS
from edge import Edge, find_edge
from variants import SIZES, parse_variant

from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts/bench/gpu"
HAS_TORCH = importlib.util.find_spec("torch") is not None
# What a machine with jax, flax, optax, orbax and torch has, and pydantic, which README.md says to carry.
THERE = {"jax", "flax", "optax", "numpy", "einops", "jaxtyping", "yaml", "pydantic", "torch"}


def run_python(*arguments: str, **others: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(BENCH)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **others}
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
import json
import sys
from dataclasses import replace

import torch
from ours import Trainer
from torch_llama import Style, angles, initial_weights, loss
from variants import SIZES, parse_variant, text

name, changes = sys.argv[1], json.loads(sys.argv[2])
size = replace(SIZES[name], sequence=256, sections={**SIZES[name].sections, **changes})
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


def shrunk(name: str, by: int, **others: int) -> dict[str, int]:
    """Two layers of a size, every width divided: heads and their ratio to key heads stay."""
    arch = SIZES[name].architecture()
    widths = ("embed_dim", "head_dim", "mlp_dim")
    divided = {width: getattr(arch, width) // by for width in widths}
    return {"vocab_size": 1024, "num_layers": 2, **divided, **others}


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("small", {}),
        ("1b-128", shrunk("1b-128", 8)),
        ("8b-layers", shrunk("8b-layers", 16)),
        ("8b-layers", shrunk("8b-layers", 16, head_dim=32)),
    ],
    ids=["small", "1b-128", "8b-layers", "heads wider than the embedding"],
)
def test_both_contenders_compute_the_same_loss_from_the_same_weights(
    size: str, changes: dict[str, int]
) -> None:
    done = run_python("-c", SAME_LOSS, size, json.dumps(changes))
    assert done.returncode == 0, done.stderr
    whole, chunked, ours = map(float, done.stdout.split())
    # fp32 rounding through four layers, averaged over 256 tokens: 1e-6 and less of the loss.
    assert whole == pytest.approx(ours, rel=1e-5)
    assert chunked == pytest.approx(ours, rel=1e-5)


# What their authors count: Llama-3.2-1B (its table once), and Llama-3-8B (table and head).
ONE_BILLION, EIGHT_BILLION = 1_235_814_400, 8_030_261_248


def test_sizes_have_the_widths_that_they_are_named_for() -> None:
    one, wide, eight = (SIZES[name].architecture() for name in ("1b", "1b-128", "8b-layers"))
    assert (one.num_heads, one.num_kv_heads, one.head_dim) == (32, 8, 64)
    assert (wide.num_heads, wide.num_kv_heads, wide.head_dim) == (16, 4, 128)
    assert (eight.num_heads, eight.num_kv_heads, eight.head_dim) == (32, 8, 128)
    assert wide.rope_scaling == one.rope_scaling
    assert all(arch.tied_embeddings for arch in (one, wide, eight))
    table, norm = eight.vocab_size * eight.embed_dim, eight.embed_dim
    layer = (EIGHT_BILLION - 2 * table - norm) // 32
    counts = {
        name: sum(
            spec.size for spec in blueprint(model_builder(SIZES[name].model())).description.values()
        )
        for name in DEFAULTS
    }
    assert counts == {
        "1b": ONE_BILLION,
        "1b-128": ONE_BILLION,
        "8b-layers": 8 * layer + table + norm,
    }


def test_default_variants_are_ones_that_there_are() -> None:
    for name, given in DEFAULTS.items():
        layers = SIZES[name].architecture().num_layers
        for variant in map(parse_variant, f"{given.ours};{given.torch}".split(";")):
            assert layers % variant.unroll == 0


def tries(most: int, start: int, **limits: int) -> tuple[Edge, list[int]]:
    """What is found where `most` fit, and the numbers tried."""
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= most

    return find_edge(fits, start, **limits), tried


@pytest.mark.parametrize("start", [1, 7, 64, 100])
def test_with_enough_bisections_the_edge_is_exact(start: int) -> None:
    for most in range(1, 300):
        edge, tried = tries(most, start, bisections=9, runs=30)
        assert edge == Edge(most, most + 1)
        assert str(edge) == str(most)
        assert len(tried) == len(set(tried)), "nothing is tried twice"
        # Doublings from 1 to 300 or halvings from 100, the first included, and bisections of at most 256 numbers.
        assert len(tried) <= 10 + 8


def test_two_bisections_leave_a_quarter_of_the_last_doubling() -> None:
    for most in range(64, 1000):
        edge, tried = tries(most, 64)
        assert edge.fails is not None
        assert edge.fits <= most < edge.fails
        doubled = 64 * 2 ** (most // 64).bit_length()
        assert edge.fails - edge.fits == doubled // 8
        assert len(tried) == (most // 64).bit_length() + 1 + 2


def test_what_is_not_known_of_an_edge_is_said() -> None:
    assert [str(tries(500, 2, runs=runs)[0]) for runs in (0, 1, 3)] == [
        "not found in time",
        "at least 2",
        "at least 8",
    ]
    assert (str(tries(0, 8)[0]), tries(0, 8)[1]) == ("none fits", [8, 4, 2, 1])
    assert str(tries(0, 8, runs=2)[0]) == "fewer than 4"


def test_a_run_that_tells_nothing_ends_the_search_with_what_is_known() -> None:
    answers = {64: True, 128: False, 96: None}
    assert find_edge(answers.get, 64) == Edge(64, 128)
    assert str(find_edge({64: None}.get, 64)) == "not found in time"


FAKE_RUNS = """
import run
from launch import Outcome

LIMITS = {"jaxscale": 100, "torch": 40}

def fake(job, setting, limit):
    rows = int(dict(pair.split("=") for pair in job.variant.split(","))["rows"])
    result = {
        "rows": rows, "tokens_per_second": 1000.0 + rows, "peak_gib": rows / LIMITS[job.contender], "mfu": None,
        "first_step": 1.0, "losses": [7.0], "step": [1.0], "note": job.size,
    }
    outcome = Outcome(job.contender, job.variant, job.stage, job.round, 1.0, "ok", result)
    return outcome if rows <= LIMITS[job.contender] else Outcome(
        job.contender, job.variant, job.stage, job.round, 1.0, "out of memory"
    )

run.launch = fake
run.main()
"""


def fake_runs(out: Path, *arguments: str) -> dict[str, Any]:
    done = run_python("-c", FAKE_RUNS, "--out", str(out), *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "gpu_step.json").read_text())
    return found


def test_the_most_rows_are_found_for_each_contender(tmp_path: Path) -> None:
    found = fake_runs(tmp_path, "--stages", "largest")["largest"]
    assert [(each["contender"], each["rows"], each["fails"]) for each in found] == [
        ("jaxscale", "96", 112),
        ("torch", "40", 48),
    ]
    assert [each["tokens_per_second"] for each in found] == [1096, 1040]
    assert [each["peak_gib"] for each in found] == [0.96, 1.0]
    written = (tmp_path / "gpu_step.md").read_text()
    assert "| jaxscale | remat=full,chunk=1024 | 96 | 112 | 1,096 | 1.0 |" in written


def test_memory_is_compared_at_equal_rows_though_the_fastest_differ_in_them(tmp_path: Path) -> None:
    found = fake_runs(tmp_path, "--stages", "search", "--ours", "rows=32", "--torch", "rows=8")
    assert [(run["contender"], run["result"]["rows"]) for run in found["runs"]] == [
        ("jaxscale", 32),
        ("torch", 8),
        ("jaxscale", 8),
    ]
    written = (tmp_path / "gpu_step.md").read_text()
    assert "| 8 | jaxscale | rows=32,rows=8 | 1,008 | 0.1 |" in written
    assert "| 8 | torch | rows=8 | 1,008 | 0.2 |" in written


def test_a_size_is_run_with_its_own_variants(tmp_path: Path) -> None:
    arguments = "--stages", "search", "--size", "8b-layers"
    found = fake_runs(tmp_path, *arguments)
    assert found["machine"]["size"] == "8b-layers"
    assert {run["result"]["note"] for run in found["runs"]} == {"8b-layers"}
    assert {run["variant"] for run in found["runs"]} == {
        *DEFAULTS["8b-layers"].ours.split(";"),
        *DEFAULTS["8b-layers"].torch.split(";"),
    }


def bench(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run_python(str(BENCH / "run.py"), "--out", str(out), "--smoke", *arguments)
    assert (out / "gpu_step.json").exists(), done.stderr
    return done.returncode, json.loads((out / "gpu_step.json").read_text())


@pytest.mark.slow
def test_all_stages_run_and_a_variant_that_fails_is_recorded(tmp_path: Path) -> None:
    torch = "rows=2,chunk=0,torch_mode=eager" if HAS_TORCH else ""
    status, found = bench(
        tmp_path,
        *(
            "--stages",
            "search,parity,rounds,ablate,trace",
            "--size",
            "1b-128",
            "--rounds",
            "1",
            "--torch",
            torch,
        ),
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


@pytest.mark.slow
def test_the_search_for_the_most_rows_runs(tmp_path: Path) -> None:
    status, found = bench(tmp_path, "--stages", "largest", "--torch", "")
    assert status == 0, (tmp_path / "gpu_step.log").read_text()
    (largest,) = found["largest"]
    assert (largest["contender"], largest["rows"], largest["fails"]) == (
        "jaxscale",
        "at least 4",
        None,
    )
    assert largest["tokens_per_second"] > 0
    assert [len(run["result"]["losses"]) for run in found["runs"]] == [2, 2]


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


CHECKED = """
from dataclasses import replace

import jax
import products
from jaxscale.kernels.target import Target

target = Target("tpu", "TPU v5", interpreted=True)
for case in products._tiny_cases(["ragged_matmul", "attention"]):
    kernel = next(e.name for e in case.implementations if e.is_pallas and not e.reason(target, case.call))

    def off(choice, target):
        run, share = case.run(choice, target), 1.02 if choice.name == kernel else 1.0
        return lambda *inputs: jax.tree.map(lambda result: share * result, run(*inputs))

    for each in (case, replace(case, run=off)):
        found = products.Found(each, each.baseline(target))
        products._check(found, [found.baseline, kernel], target)
        print(case.op, kernel, found.is_right)
"""


@pytest.mark.slow
def test_kernels_that_are_two_percent_off_are_wrong() -> None:
    """Interpreted: three routed products, and attention with gradients, of whole rows and of documents."""
    done = run_python("-c", CHECKED)
    assert done.returncode == 0, done.stderr
    routed, attention = ("ragged_matmul", "pallas_tpu"), ("attention", "pallas_splash")
    assert [tuple(line.split()) for line in done.stdout.splitlines()] == [
        (*op, right) for op in (routed,) * 3 + (attention,) * 2 for right in ("True", "False")
    ]


@pytest.mark.slow
def test_kernels_alone_are_measured_op_by_op(tmp_path: Path) -> None:
    arguments = "--ops", "ragged_matmul", "attention", "--smoke", "--out", str(tmp_path)
    done = run_python(str(BENCH / "products.py"), *arguments)
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "products.json").read_text())["cases"]
    assert [each["case"].split()[:2] for each in cases] == [
        *(["ragged_matmul", layout] for layout in ("nn", "nt", "tn")),
        *(["attention", layout] for layout in ("causal", "causal_documents")),
    ]
    for each in cases:
        assert each["baseline"] == "xla"
        assert each["seconds"]["xla"] > 0
        assert "needs a TPU" in str(each["declined"])


def all_parts(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(str(BENCH / "all.py"), "--smoke", *arguments, **environment)


@pytest.mark.slow
def test_all_parts_run_one_after_another_to_their_end(tmp_path: Path) -> None:
    done = all_parts("--out", str(tmp_path), "--parts", "kernels")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "kernels gpu/products.py: done",
        "kernels kernels/run.py: done",
    ]
    assert json.loads((tmp_path / "kernels/products.json").read_text())["cases"]
    assert (tmp_path / "kernels/forms.json").exists()


@pytest.mark.slow
def test_a_program_that_fails_is_named_and_the_next_one_runs(tmp_path: Path) -> None:
    done = all_parts("--out", str(tmp_path), "--parts", "kernels", JAX_PLATFORMS="nonsense")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
        "kernels gpu/products.py: exit status 1",
        "kernels kernels/run.py: exit status 1",
    ]


def test_a_folder_without_wheels_ends_all_parts_before_they_start(tmp_path: Path) -> None:
    done = all_parts("--out", str(tmp_path / "out"), "--wheels", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "there is no wheel in it" in done.stderr
