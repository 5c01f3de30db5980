"""`jaxscale plan` with input that is wrong: one message that says what would work, status 2, no traceback."""

import re
from pathlib import Path

import pytest
from cli_cases import ROOT, call

MODELS = ROOT / "configs/models"
SMALL = MODELS / "llama3.2-1b.yaml"
EIGHT = ("--on", "h100:8")
CLUSTER = """
name: mine
chip: {name: board, peak_flops: {bfloat16: 100TFLOP/s}, hbm: 24GiB, hbm_bandwidth: BANDWIDTH}
dims: [{name: host, size: 4, network: PCIe, bandwidth: 25GB/s}]
host_bandwidth: 25GB/s
"""


def refusal(*arguments: str | Path) -> str:
    """The message of a command that must refuse its input."""
    answer = call("plan", *arguments)
    assert (answer.status, answer.out) == (2, ""), answer
    assert "Traceback" not in answer.err
    return answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--on", "h1000:8"), ("unknown chip 'h1000'", "h100")),
        (("--on", "v5p:3x5x7"), ("3x5x7", "nearest: v5p:4x4x")),
        ((), ("which cluster?", "--on h100:8x4")),
        ((*EIGHT, "--batch", "4", "--pin", "data=8"), ("batch of 4", "data=8 = 8", "--batch 8")),
        (
            (*EIGHT, "--pin", "tensor=8", "--pin", "tensor<=4"),
            ("--pin tensor=8", "--pin tensor<=4"),
        ),
        (
            (*EIGHT, "--pin", "tensor=4", "--pin", "fsdp=4"),
            ("--pin tensor=4", "--pin fsdp=4", "16"),
        ),
        (
            (*EIGHT, "--pin", "schedule=interleaved", "--pin", "pipeline=1"),
            ("--pin schedule=interleaved and --pin pipeline=1 contradict",),
        ),
        ((*EIGHT, "--pin", "tensr=4"), ("'tensr'", "did you mean 'tensor'?")),
        ((*EIGHT, "--pin", "remat=ful"), ("did you mean 'full'?",)),
        (
            (*EIGHT, "--pin", "vocab_activation=fsdp", "--pin", "pipeline=2"),
            ("--pin vocab_activation=fsdp and --pin pipeline=2 contradict", "and no pipeline"),
        ),
        (
            (*EIGHT, "--pin", "vocab_activation<=1"),
            ("write vocab_activation=none or vocab_activation=fsdp",),
        ),
        ((*EIGHT, "--pin", "remat=attention"), ("the trainer has the policies none, dots",)),
        ((*EIGHT, "--pin", "context=2", "--executable"), ("does not run context yet",)),
        ((*EIGHT, "--batch", "8", "--pin", "microbatches=3"), ("does not divide", "microbatches=")),
        ((*EIGHT, "--seq", "999999999"), ("longer than the 131,072 positions",)),
        ((*EIGHT, "--what-if", "hbn=1GiB"), ("'hbn'", "did you mean 'hbm'?")),
        ((*EIGHT, "--what-if", "hbm=1parsec"), ("hbm=1parsec",)),
        ((*EIGHT, "--what-if", "hbm"), ("write it as hbm=141GiB",)),
        (("--on", "h100:8x8", "--devices", "57"), ("57", "56", "64")),
        ((*EIGHT, "--why", "99"), ("no plan of rank 99",)),
        ((*EIGHT, "--not", "fsdp=4"), ("4 devices", "8", "data=2 fills it")),
        ((*EIGHT, "--not", "fsdp<=8"), ("one size for fsdp",)),
        ((*EIGHT, "--show", "40"), ("--show 40",)),
    ],
)
def test_wrong_input_is_refused_with_what_would_work(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = refusal(SMALL, *arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("line", "word"),
    [("hbm_bandwidth: -5GB/s", "-5GB/s"), ("unused: 1", "hbm_bandwidth is required")],
)
def test_a_cluster_file_with_a_missing_or_negative_number(
    tmp_path: Path, line: str, word: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CLUSTER.replace("hbm_bandwidth: BANDWIDTH", line))
    message = refusal(SMALL, "--on", str(path))
    assert "mine.yaml" in message
    assert word in message


def test_an_odd_vocabulary_cannot_be_pinned_apart() -> None:
    """GPT-2 has 12 heads, which divide over 4, and 50,257 tokens, which do not."""
    message = refusal(MODELS / "gpt2-124m.yaml", *EIGHT, "--pin", "tensor=4")
    assert "--pin tensor=4 excludes every layout" in message
    assert "vocabulary 50,257 does not divide over 4" in message
    assert "vocabulary 50,260 would divide over 4" in message
    assert "without --pin tensor=4" in message


def test_an_odd_vocabulary_is_not_split_over_fsdp() -> None:
    message = refusal(MODELS / "gpt2-124m.yaml", *EIGHT, "--pin", "vocab_activation=fsdp")
    assert "--pin vocab_activation=fsdp excludes every layout" in message
    assert "a vocabulary (50,257) that divides over fsdp x tensor" in message


def test_a_model_that_fits_nowhere_near_is_told_what_would_hold_it() -> None:
    message = refusal(MODELS / "llama3-70b.yaml", *EIGHT, "--batch", "64")
    assert "none of" in message
    assert "that a plan may fill (78.3 less" in message
    found = re.search(
        r"smallest cluster of this kind that fits: h100:8x\d+ \((\d+) devices\)", message
    )
    assert found is not None, message
    # 16 bytes a parameter of 70.6B are 1,130 GB: 14 devices of 84 GB at the least, so two nodes or more.
    assert 16 <= int(found[1]) <= 64


def test_a_module_of_ones_own_is_planned_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model: my_model.py:build\n")
    assert "plan of a module of your own by hand" in refusal(path, *EIGHT)
