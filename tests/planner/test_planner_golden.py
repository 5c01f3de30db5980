"""Plans of well-known models on well-known clusters as text: a change in judgement shows as a diff.

To accept one: JAXSCALE_UPDATE_GOLDEN=1 pytest tests/planner/test_planner_golden.py, then read the diff.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxscale.config.loading import load_model
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.planner.report.question import Request, make_question
from jaxscale.planner.search.answer import Answer, answer
from jaxscale.planner.search.rejections import words

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
UPDATE = "JAXSCALE_UPDATE_GOLDEN"
# Model, cluster, sequences a step, overrides: memory of the CPU is that of whatever machine this is.
CASES = (
    ("gpt2-124m", "cpu:8", 64, {"hbm": "2GiB"}),
    ("llama3.2-1b", "h200:1", 128, {}),
    ("llama3-8b", "h100:8", 128, {}),
    ("llama3-8b", "h100:8x4", 256, {}),
    ("llama3-8b", "v5e:16x16", 512, {}),
    ("llama3-70b", "h100:8x32", 512, {}),
    ("llama3-70b", "v5p:8x8x8", 1024, {}),
    ("qwen2.5-72b", "v6e:16x16", 512, {}),
    ("llama3.1-405b", "h100:8x2048", 2048, {}),
    ("llama3.1-405b", "gb200:72x14", 1008, {}),
    ("llama3.1-405b", "v5p:16x16x16", 2048, {}),
)


def golden_text(found: Answer) -> str:
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Answer) -> Iterator[str]:
    workload, cluster = found.problem.workload, found.problem.cluster
    yield f"{workload.shape.name} on {cluster.name}: {workload.global_batch} x {workload.sequence}"
    for one in found.plans:
        plan = one.prediction
        yield (
            f"{one.rank}. {plan.step_seconds:#.3g} s, {plan.peak_bytes / 2**30:.1f} GiB: {words(plan.layout)}"
        )


@pytest.mark.parametrize(("model", "cluster", "batch", "overrides"), CASES, ids=str)
def test_plans_are_their_golden_text(
    model: str, cluster: str, batch: int, overrides: dict[str, str]
) -> None:
    section, _ = load_model(ROOT / f"configs/models/{model}.yaml")
    machine = parse_cluster(cluster, overrides=overrides)
    question = make_question(section, model, machine, Request(batch=batch))
    text = golden_text(answer(question.problem, top=5))
    path = GOLDEN / f"{model}_{cluster.replace(':', '_')}.txt"
    if os.environ.get(UPDATE):
        path.write_text(text)
    assert text == path.read_text()
