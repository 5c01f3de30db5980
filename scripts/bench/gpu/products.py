"""Our matrix product kernels beside XLA's (cuBLAS) on one GPU: `products.py --out DIR`. See README.md.

Every product of a layer of Llama-3.2-1B and of Llama-3-8B (forward, and the gradients by input and by weight), and both
gated kernels of their MLPs: 8192 tokens, bfloat16, random normal inputs. First each kernel with its default tiles: is
it right, the same bits twice, and how fast; then, while there is time, with other tiles. After each case products.json,
products.md and tuning tables (`tuning/OP/DEVICE.json`, as `jaxscale tune` writes them) are written. Exit status 1 if a
kernel is wrong.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from launch import smi

from jaxscale.config.loading import load_model
from jaxscale.hardware import find_chip
from jaxscale.kernels.cases import Case
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.glu.cases import cases as glu_cases
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.kernels.measure import BASELINE, Measurement, Timing, inputs_of, measure, timed
from jaxscale.kernels.registry import key_of
from jaxscale.kernels.target import Target, target_of
from jaxscale.kernels.tuning import Entry, write
from jaxscale.models.families import resolve

MODELS = Path(__file__).parents[3] / "configs/models"
NAMES = ("llama3.2-1b", "llama3-8b")
# bfloat16 has 8 bits: two ways of summing in fp32 round to neighbours at most, of the largest element.
TOLERANCE = 2.0**-7


@dataclass
class Found:
    """One case: what ran, fastest configuration of each implementation, and how far from XLA's result it is."""

    case: Case
    best: dict[str, Measurement] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    repeats: dict[str, bool] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        return all(error <= TOLERANCE for error in self.error.values()) and all(
            self.repeats.values()
        )


def main() -> None:
    arguments = _arguments()
    deadline = time.time() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = target_of()
    timing = Timing(groups=3) if arguments.smoke else Timing()
    found = [Found(case) for case in _cases(tiny=arguments.smoke)]
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


def _cases(*, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield from matmul_cases(256, 128, 256, "bfloat16")
        yield from glu_cases(256, 128, 256, "bfloat16")
        return
    for name in NAMES:
        arch = resolve(load_model(MODELS / f"{name}.yaml", [])[0])
        embed, mlp, keys = arch.embed_dim, arch.mlp_dim, arch.num_kv_heads * arch.head_dim
        for inward, outward in ((embed, embed), (embed, keys), (embed, mlp), (mlp, embed)):
            yield from matmul_cases(8192, inward, outward, "bfloat16")
        yield from glu_cases(8192, embed, mlp, "bfloat16")


def _first(found: Found, target: Target, timing: Timing) -> None:
    for each in measure(found.case, target, timing):
        if each.seconds is None:
            found.declined[each.implementation] = each.why
            continue
        found.best[each.implementation] = each
        if each.implementation != BASELINE:
            _check(found, each.implementation, target)


def _check(found: Found, kernel: str, target: Target) -> None:
    inputs = inputs_of(found.case.operands, count=1)[0]

    def results(name: str) -> list[jax.Array]:
        run = found.case.run(Choice(name, {}), target)
        return jax.tree.leaves(jax.jit(run)(*inputs))

    wanted, ours, again = results(BASELINE), results(kernel), results(kernel)
    errors = [float(_distance(a, b)) for a, b in zip(ours, wanted, strict=True)]
    found.error[kernel] = max(errors)
    found.repeats[kernel] = all(bool((a == b).all()) for a, b in zip(ours, again, strict=True))


@jax.jit
def _distance(ours: jax.Array, wanted: jax.Array) -> jax.Array:
    wide = ours.astype(jnp.float32), wanted.astype(jnp.float32)
    return jnp.abs(wide[0] - wide[1]).max() / jnp.abs(wide[1]).max()


def _others(found: list[Found]) -> Iterator[tuple[Found, str, Any]]:
    """Configurations beside the default, one of each case after another."""
    most = max(len(configs) for each in found for configs in each.case.candidates.values())
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
    baseline = found.best.get(BASELINE)
    for each in found.case.implementations:
        best = found.best.get(each.name)
        if baseline is None or best is None or not each.is_pallas or not found.is_right:
            continue
        assert best.seconds is not None
        assert baseline.seconds is not None
        yield Entry(
            **vars(key_of(found.case.op, each, target, found.case.call)),
            config=best.config,
            seconds=best.seconds,
            baseline_seconds=baseline.seconds,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
        )


def _as_data(found: Found) -> dict[str, Any]:
    return {
        "case": found.case.name,
        "flops": found.case.flops,
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
        "| case | implementation | ms | TFLOP/s | of peak | speed / XLA's |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for each in found:
        baseline = each.best.get(BASELINE)
        for name, best in each.best.items():
            assert best.seconds is not None
            rate = each.case.flops / best.seconds
            ratio = "" if baseline is None else f"{(baseline.seconds or 0) / best.seconds:.3f}"
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
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device")
    return parser.parse_args()


if __name__ == "__main__":
    main()
