"""Cases in forms that nobody foresaw: each gets a verdict with a reason, never a traceback."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planner_truth.cases import Case, CaseFile, load_cases, normalised
from planner_truth.clusters import clusters_of
from planner_truth.evaluate import evaluate_case
from planner_truth.main import main
from planner_truth.output import document
from planner_truth.scoring import Score, score
from published import FILE, a_case

# One case of each form of question: closed forms, memory, a run, a pipeline, a choice, options in words.
NAMES = (
    "sb-xopt-64", "sb-shard-bytes", "kor-t2-tensor+sequence", "bloom-0225-14336x72-dp32tp2pp6mb2",
    "zero-fig1-ZeRO-1-31.4", "llf-h100_80gb-7b-2048-8-mb6", "tr-v6e-llama3.1-8b-16", "tt-405b-512-int1f1b",
    "sc21-rank-zero3-vs-ptd", "meg-bytes-per-param",
)  # fmt: skip
CASES = [case for case in FILE.cases if case.id in NAMES]
ODD_VALUES: tuple[Any, ...] = (None, "", "frobnicate 7", [], {}, -1, 0, 10**15, float("nan"), True)


def verdict(case: Case) -> Score:
    """That it is printed as JSON is part of what must not fail."""
    found = score(case, evaluate_case(case, FILE))
    json.dumps(document([found]))
    assert found.status in {"pass", "miss", "unsupported"}
    assert found.status == "pass" or found.reason
    return found


def changed(case: Case, **given: Any) -> Case:
    return replace(case, given={**case.given, **given})


def without_one(case: Case) -> Iterator[Case]:
    for name in case.given:
        yield replace(case, given={key: v for key, v in case.given.items() if key != name})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_any_field_may_be_missing(case: Case) -> None:
    for shortened in without_one(case):
        verdict(shortened)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_any_field_may_hold_anything(case: Case) -> None:
    for number, name in enumerate(case.given):
        verdict(changed(case, **{name: ODD_VALUES[number % len(ODD_VALUES)]}))
        verdict(changed(case, **{name: ODD_VALUES[(number + 5) % len(ODD_VALUES)]}))


@pytest.mark.parametrize("value", [None, "a lot", [1], -3, float("inf")])
def test_expected_values_and_bands_may_be_anything(value: Any) -> None:
    case = next(case for case in CASES if case.prefix == "llf")
    verdict(replace(case, tolerance={"rel": value, "memory_rel": value, "mfu_abs": value}))
    found = verdict(replace(case, expected={"tok_s_chip": value, "mfu": value, "color": value}))
    assert found.status != "pass"


def test_what_comes_out_infinite_is_no_answer() -> None:
    case = next(case for case in FILE.cases if case.id == "sb-l13b-mem-16M")
    found = verdict(changed(case, batch_tokens=float("inf")))
    json.dumps(document([found]), allow_nan=False)
    assert "inf is no answer" in str(found.reason)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fields_that_nobody_knows_change_nothing(case: Case) -> None:
    extra = changed(case, network="carrier pigeon", frobnication={"level": 3})
    assert verdict(extra).predicted == verdict(case).predicted


def in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: in_words(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [in_words(inner) for inner in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if is_number else value


def as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: as_floats(inner) for name, inner in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("spelled", [in_words, as_floats])
@pytest.mark.parametrize("name", ["llf-h100_80gb-7b-2048-8-mb6", "tt-405b-512-int1f1b"])
def test_numbers_may_be_strings_or_floats(name: str, spelled: Any, tmp_path: Path) -> None:
    case = next(case for case in FILE.cases if case.id == name)
    row = {"id": case.id, "kind": case.kind, "given": spelled(dict(case.given)),
           "expected": dict(case.expected), "tolerance": {"rel": "0.2"}, "note": case.note}  # fmt: skip
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": [row], "models": dict(FILE.models)}))
    read = load_cases(path).cases[0]
    assert read.given == normalised(dict(case.given))
    assert verdict(read).predicted == verdict(case).predicted


def test_rows_may_lack_nearly_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.json"
    rows: list[Any] = [{}, {"id": 7, "given": None, "expected": {"step_s": 1}}, {"expected": "x"}]
    path.write_text(json.dumps({"cases": rows, "models": None}))
    assert main(["--cases", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cases"]
    assert [one["status"] for one in found] == ["unsupported"] * 3


@pytest.mark.parametrize("text", ["[]", "{}", '{"cases": 3}', '{"cases": [4]}', "not json"])
def test_a_file_without_cases_ends_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.json"
    path.write_text(text)
    assert main(["--cases", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "name"),
    [
        # Fewer GPUs a node than the family has; a rack of NVL72 of which 64 are used.
        ({"hw": "gpu.H200", "n_chips": 32, "nodes": 8}, "h200:4x8"),
        ({"hw": "gpu.GB200_NVL72", "n_chips": 256}, "gb200:64x4"),
        ({"hw": "gpu.GB200_NVL72", "n_chips": 144}, "gb200:72x2"),
        ({"hw": "tpu_v5e", "n_chips": 256}, "v5e:16x16"),
        ({"hw": "v5litepod-256"}, "v5e:16x16"),
        ({"hw": "Trillium", "n_chips": 64}, "v6e:8x8"),
        ({"hw": "NVIDIA A100-SXM4-40GB", "n_chips": 16}, "a100-40:8x2"),
    ],
)
def test_more_spellings_of_clusters(given: dict[str, Any], name: str) -> None:
    assert next(clusters_of(a_case(given))).name == name


@pytest.mark.parametrize("hw", ["gpu.V100", "gpu.GB300", "MI300X", "tpu.v2"])
def test_a_chip_that_is_not_in_the_catalogue_is_named_with_those_that_are(hw: str) -> None:
    given = {"hw": hw, "n_chips": 8, "model": "llama2-7b", "mesh": {"fsdp": 8}, "microbatch": 1}
    found = score(case := a_case(given, {"step_s": 1}), evaluate_case(case, CaseFile((), {}, {})))
    assert found.status == "unsupported"
    assert hw in str(found.reason)
    assert "h100" in str(found.reason)


def test_what_a_node_sends_may_be_said() -> None:
    given = {"hw": "gpu.H100", "n_chips": 16, "node_egress": 100e9}
    assert next(clusters_of(a_case(given))).dims[-1].bandwidth == 12.5e9
