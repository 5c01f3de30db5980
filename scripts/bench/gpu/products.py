"""Our kernels beside what runs untuned (cuBLAS, cuDNN, XLA) on one GPU: `products.py --out DIR`. See README.md.

Every call of a layer of Llama-3.2-1B and of Llama-3-8B, and the routed products of Mixtral 8x7B and Qwen3-30B-A3B, each
with its gradients: 8192 tokens, bfloat16, random inputs. First each implementation as it comes: is it right, the same
bits twice, and how fast; then, while there is time, kernels with other tiles. After each case products.json,
products.md and tuning tables (`tuning/OP/DEVICE.json`, as `jaxscale tune` writes them) are written. Exit status 1 if a
kernel is wrong.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from launch import smi

from jaxscale.cli.kernel_cases import OPS, Pass, cases_of
from jaxscale.config.loading import load_model
from jaxscale.config.model_section import ExpertsSection, ModelSection
from jaxscale.hardware import find_chip
from jaxscale.kernels.cases import Case
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.measure import Measurement, Timing, entry_of, inputs_of, measure, timed
from jaxscale.kernels.target import Target, target_of
from jaxscale.kernels.tuning import Entry, write

CONFIGS = Path(__file__).parents[3] / "configs"
DENSE = ("models/llama3.2-1b", "models/llama3-8b")
ROUTED = ("planned/mixtral-8x7b", "planned/qwen3-30b-a3b")
# That an implementation may be further from fp32 than the baseline is, and half an ulp of the largest bfloat16.
TIMES, ROUNDING = 2.0, 2.0**-9
# What is computed in fp32 to compare with: it serves every call.
TRUTH = "xla"
_TINY: dict[str, Any] = {
    "family": "llama3",
    "vocab_size": 256,
    "max_positions": 128,
    "num_layers": 1,
    "embed_dim": 128,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 64,
    "mlp_dim": 256,
}


@dataclass
class Found:
    """One case: what ran, fastest configuration of each implementation, and how far from fp32 its results are.

    error: the largest, over the largest element, of all results. repeats: whether the same bits came twice. That is
    asked of our kernels: cuDNN's gradients are summed in any order.
    """

    case: Case
    baseline: str
    best: dict[str, Measurement] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    repeats: dict[str, bool] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        ours = {each.name for each in self.case.implementations if each.is_pallas}
        same = all(repeats for name, repeats in self.repeats.items() if name in ours)
        allowed = TIMES * self.error.get(self.baseline, 0) + ROUNDING
        return same and all(e <= allowed for n, e in self.error.items() if n != self.baseline)


def main() -> None:
    arguments = _arguments()
    deadline = time.time() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = target_of()
    timing = Timing(groups=3) if arguments.smoke else Timing()
    cases = _tiny_cases(arguments.ops) if arguments.smoke else _cases(arguments.ops)
    found = [Found(case, case.baseline(target)) for case in cases]
    for each in found:
        if time.time() < deadline:
            _first(each, target, timing)
            _save(found, target, arguments.out)
    for each, kernel, config in _others(found):
        if time.time() < deadline:
            _consider(each, timed(each.case, kernel, config, target, timing))
            _save(found, target, arguments.out)
    print((arguments.out / "products.md").read_text())
    raise SystemExit(0 if all(each.is_right for each in found) else 1)


def _cases(ops: list[str]) -> list[Case]:
    """Of routed models the routed products alone."""
    read = {name: load_model(CONFIGS / f"{name}.yaml", []) for name in (*DENSE, *ROUTED)}
    found: list[Case] = []
    for op in ops:
        names = ROUTED if op == "ragged_matmul" else DENSE
        found += cases_of([op], [read[name] for name in names], Pass(rows=8192))
    return found


def _tiny_cases(ops: list[str]) -> list[Case]:
    experts = ExpertsSection(count=4, per_token=2, mlp_dim=128)
    models = ModelSection(**_TINY), ModelSection(**_TINY, experts=experts)
    return cases_of(ops, [(model, None) for model in models], Pass(rows=256))


def _first(found: Found, target: Target, timing: Timing) -> None:
    for each in measure(found.case, target, timing):
        if each.seconds is None:
            found.declined[each.implementation] = each.why
            continue
        found.best[each.implementation] = each
    if len(found.best) > 1:
        _check(found, list(found.best), target)


def _check(found: Found, names: list[str], target: Target) -> None:
    """All results of implementations, gradients too where they return them, beside those in fp32."""
    inputs = inputs_of(found.case, count=1)[0]
    wide = [a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in inputs]
    with jax.default_matmul_precision("highest"):
        exact = jax.tree.leaves(_compiled(found.case, TRUTH, target)(*wide))
    for name in names:
        run = _compiled(found.case, name, target)
        results, again = jax.tree.leaves(run(*inputs)), jax.tree.leaves(run(*inputs))
        pairs = zip(results, exact, strict=True)
        found.error[name] = max(float(_distance(ours, wanted)) for ours, wanted in pairs)
        twice = zip(results, again, strict=True)
        found.repeats[name] = all(bool((a == b).all()) for a, b in twice)


def _compiled(case: Case, name: str, target: Target) -> Callable[..., Any]:
    return jax.jit(case.run(Choice(name, {}, target=target), target))


@jax.jit
def _distance(ours: jax.Array, wanted: jax.Array) -> jax.Array:
    wide = ours.astype(jnp.float32), wanted.astype(jnp.float32)
    return jnp.abs(wide[0] - wide[1]).max() / jnp.abs(wide[1]).max()


def _others(found: list[Found]) -> Iterator[tuple[Found, str, Any]]:
    """Configurations beside the default, one of each case after another."""
    most = max((len(c) for each in found for c in each.case.candidates.values()), default=0)
    for number in range(most):
        for each in found:
            for kernel, configs in each.case.candidates.items():
                if kernel in each.best and number < len(configs):
                    yield each, kernel, configs[number]


def _consider(found: Found, measured: Measurement) -> None:
    best = found.best[measured.implementation].seconds
    if measured.seconds is not None and best is not None and measured.seconds < best:
        found.best[measured.implementation] = measured


def _save(found: list[Found], target: Target, out: Path) -> None:
    entries: dict[str, list[Entry]] = {}
    for each in found:
        for entry in _entries(each, target):
            entries.setdefault(entry.op, []).append(entry)
    for op, rows in entries.items():
        write(out / "tuning" / op, rows)
    machine = {"jax": jax.__version__, "date": datetime.now(UTC).isoformat(), **smi()}
    cases = [_as_data(each) for each in found]
    (out / "products.json").write_text(json.dumps({"machine": machine, "cases": cases}, indent=1))
    (out / "products.md").write_text(_markdown(found, target, machine))


def _entries(found: Found, target: Target) -> Iterator[Entry]:
    baseline = found.best.get(found.baseline)
    for each in found.case.implementations:
        best = found.best.get(each.name)
        if baseline is not None and best is not None and each.is_pallas and found.is_right:
            yield entry_of(best, each, baseline, target)


def _as_data(found: Found) -> dict[str, Any]:
    return {
        "case": found.case.name,
        "flops": found.case.flops,
        "baseline": found.baseline,
        "seconds": {name: best.seconds for name, best in found.best.items()},
        "config": {name: dict(best.config) for name, best in found.best.items()},
        "error": found.error,
        "same_bits_twice": found.repeats,
        "declined": found.declined,
    }


def _markdown(found: list[Found], target: Target, machine: dict[str, Any]) -> str:
    chip = find_chip(target.device_kind)
    peak = None if chip is None else chip.peak_flops["bfloat16"]
    lines = [
        f"{target.device_kind}, {machine}",
        "",
        "| case | implementation | ms | TFLOP/s | of peak | speed over baseline |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for each in found:
        baseline = each.best.get(each.baseline)
        for name, best in each.best.items():
            assert best.seconds is not None
            rate = each.case.flops / best.seconds
            ratio = "" if baseline is None else f"{(baseline.seconds or 0) / best.seconds:.3f}"
            ratio = "baseline" if name == each.baseline else f"{ratio} {each.baseline}"
            share = "" if peak is None else f"{rate / peak:.1%}"
            config = f" {dict(best.config)}" if best.config else ""
            cells = each.case.name, name + config, f"{1e3 * best.seconds:.3f}"
            lines.append(f"| {' | '.join((*cells, f'{rate / 1e12:.0f}', share, ratio))} |")
    lines += [f"WRONG: {e.case.name} {e.error} {e.repeats}" for e in found if not e.is_right]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="what does not fit is left out")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), metavar="OP")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device")
    return parser.parse_args()


if __name__ == "__main__":
    main()
