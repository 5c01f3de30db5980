"""`jaxscale data`: text into stores that a run can be pointed at, and batches to look at."""

import gzip
import json
import re
from pathlib import Path

import pytest
from cli_cases import BOOK, call, succeed

from jaxscale.config.loading import load_config
from jaxscale.training.run import train_run

TRAIN_BPE = ("--tokenizer", "train", "--vocab-size", "280")
PARAGRAPHS = [text for text in BOOK.read_text(encoding="utf-8")[:20_000].split("\n\n") if text]


def write_txt(folder: Path) -> Path:
    (folder / "a.txt").write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return folder / "a.txt"


def write_jsonl_gz(folder: Path) -> Path:
    lines = "\n".join(json.dumps({"text": text}) for text in PARAGRAPHS)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder / "a.jsonl.gz"


def write_folder(folder: Path) -> Path:
    inner = folder / "texts" / "inner"
    inner.mkdir(parents=True)
    half = len(PARAGRAPHS) // 2
    (inner.parent / "a.txt").write_text("\n\n".join(PARAGRAPHS[:half]), encoding="utf-8")
    (inner / "b.txt").write_text("\n\n".join(PARAGRAPHS[half:]), encoding="utf-8")
    return inner.parent


def write_parquet(folder: Path) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": PARAGRAPHS}), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize(
    ("write", "documents"),
    [
        (write_txt, 1),
        (write_jsonl_gz, len(PARAGRAPHS)),
        (write_folder, 2),
        (write_parquet, len(PARAGRAPHS)),
    ],
)
def test_text_of_any_kind_becomes_a_store_once(tmp_path: Path, write, documents: int) -> None:
    """Bytes as tokens: as many as the text has, and one behind each document."""
    source, out = write(tmp_path), tmp_path / "store"
    command = ("data", "prepare", source, "--out", out, "--eval-fraction", "0")
    first = succeed(*command)
    blank = 2 * (len(PARAGRAPHS) - documents)  # Lines between paragraphs that share a document.
    tokens = sum(len(text.encode()) for text in PARAGRAPHS) + blank + documents
    plural = "" if documents == 1 else "s"
    assert first.splitlines()[0] == (
        f"{out}/train: {tokens:,} tokens, {documents} document{plural}"
    )
    assert "nothing to do" not in first
    assert "nothing to do" in succeed(*command)


@pytest.mark.slow
def test_a_run_trains_on_a_prepared_store_as_the_command_says(config: Path, tmp_path: Path) -> None:
    said = succeed(
        "data", "prepare", write_jsonl_gz(tmp_path), "--out", tmp_path / "store", *TRAIN_BPE
    )
    hint = re.search(r"train on it: (.*), with a model.vocab_size of at least (\d+)", said)
    assert hint is not None
    assert int(hint[2]) == 280
    few = ("model.vocab_size=280", "training.steps=2", "data.eval_fraction=0.5")
    outcome = train_run(
        load_config(config, [*hint[1].split(), *few]), tmp_path / "run", say=lambda _: None
    )
    assert outcome.steps == 2
    assert (tmp_path / "run/tokenizer/tokenizer.json").is_file()
    whole = json.loads(succeed("eval", tmp_path / "run", "plan.data=1", "--json"))
    counts = re.search(r"eval: ([\d,]+) tokens, (\d+) documents?", said)
    assert counts is not None
    # The end of a document predicts nothing.
    assert whole["eval_tokens"] == int(counts[1].replace(",", "")) - int(counts[2])
    assert whole["eval_bits_per_byte"] < 8.5  # Of a model that knows nothing yet.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.txt",), "there is no 'missing.txt'"),
        (("empty.txt",), "it is empty or blank"),
        (("empty.txt", "--tokenizer", "train"), "it is empty or blank"),
        (("notes.md",), "suffix that is not known"),
        (("a.txt", "--tokenizer", "nowhere"), "there is no tokenizer at 'nowhere'"),
        (("a.txt", "--tokenizer", "train", "--vocab-size", "9"), "'--vocab-size'"),
        (("a.txt", "--eval-fraction", "2"), "eval_fraction is 2.0"),
        (("a.txt", "--separator", ""), "document_separator is empty"),
        (("a.txt", "--workers", "0"), "'--workers'"),
    ],
)
def test_what_cannot_be_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_txt(tmp_path)
    for name in ("empty.txt", "notes.md"):
        (tmp_path / name).touch()
    answer = call("data", "prepare", *arguments, "--out", "store")
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err


def test_a_batch_shows_text_borders_masks_and_where_it_comes_from(
    config: Path, tmp_path: Path
) -> None:
    """Documents of seven bytes and their end, so that it is known what stands where in the store."""
    texts = [f"whale{n:02}" for n in range(60)]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    stream = "".join(f"{text}$" for text in texts)
    data = (f"data.train={source}", f"data.store={tmp_path}", "data.eval_fraction=0")
    shown = succeed("data", "inspect", config, *data, "--rows", "8", "--step", "1")
    rows = [row.splitlines() for row in shown.strip().split("\n\n")]
    assert len(rows) == 8
    for number, (headline, origin, text) in enumerate(rows):
        ranges = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\.\.(\d+)", origin)]
        expected = "".join(stream[start : stop + 1] for start, stop in ranges)
        visible = re.sub(r"┃padding x \d+", "", text).replace("[<|endoftext|>]", "$")
        assert re.sub(r"┃\d+ ", "", visible) == expected
        documents = len(expected.removesuffix("$").split("$"))
        assert re.findall(r"┃(\d+) ", text) == [str(n + 1) for n in range(documents)]
        targets = len(expected) - expected.count("$")
        assert headline == (
            f"row {number}: {len(expected)} of 32 tokens, documents: {documents}, targets: {targets}"
        )
        first, last = ranges[0][0] // 8, ranges[-1][1] // 8
        assert origin.startswith(f"from {source} tokens ")
        assert f"(documents {first} to {last}), window " in origin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "-1"), "'--step'"),
        (("--rows", "0"), "'--rows'"),
        (("data.sequence_length=50000",), "shorten sequence_length"),
        (("data.train=missing.txt",), "there is no 'missing.txt'"),
    ],
)
def test_a_batch_that_does_not_exist_is_refused(
    config: Path, arguments: tuple[str, ...], message: str
) -> None:
    answer = call("data", "inspect", config, *arguments)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err
