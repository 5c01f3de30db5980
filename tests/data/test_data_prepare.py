import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest

from jaxscale.data.prepare import Progress, prepare
from jaxscale.data.store import Store
from jaxscale.data.tokenizers import ByteTokenizer, train_bpe
from jaxscale.errors import UserError


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file under a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def texts(store: Store) -> list[str]:
    tokenizer, offsets = store.tokenizer(), store.document_offsets
    tokens = store.read(0, store.num_tokens)
    return [tokenizer.decode(tokens[a : b - 1].tolist()) for a, b in pairwise(offsets.tolist())]


def write_documents(folder: Path, num_files: int = 6, per_file: int = 40) -> list[str]:
    folder.mkdir()
    documents = []
    for i in range(num_files):
        mine = [f"file {i} document {j} " + "word " * (j % 7) for j in range(per_file)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in mine)
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
        documents += mine
    return documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "text"
    write_documents(folder)
    return folder


@pytest.fixture(scope="module")
def reference(corpus: Path) -> dict[str, str]:
    """What an uninterrupted run in one process makes of the corpus."""
    out = corpus.parent / "reference"
    prepare([str(corpus)], out, ByteTokenizer(), eval_fraction=0.2)
    return contents(out)


def test_documents_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "text")
    prepared = prepare([str(tmp_path / "text")], tmp_path / "out", ByteTokenizer())
    assert texts(prepared.train) == documents
    assert prepared.eval is None
    manifest = prepared.train.manifest
    assert manifest.num_documents == len(documents)
    assert manifest.num_text_bytes == sum(len(text.encode()) for text in documents)
    assert manifest.num_tokens == manifest.num_text_bytes + len(documents)
    assert [source.name for source in manifest.sources] == [f"{i}.jsonl.gz" for i in range(6)]
    stored = (tmp_path / "text" / "0.jsonl.gz").read_bytes()
    assert manifest.sources[0].size == len(stored)
    assert manifest.sources[0].sha256 == hashlib.sha256(stored).hexdigest()
    assert prepared.train.verify() == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train"]


def test_training_and_evaluation_share_no_document_and_lose_none(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "text")
    prepared = prepare(
        [str(tmp_path / "text")], tmp_path / "out", ByteTokenizer(), eval_fraction=0.2
    )
    assert prepared.eval is not None
    train, held_out = texts(prepared.train), texts(prepared.eval)
    assert sorted(train + held_out) == sorted(documents)
    assert not set(train) & set(held_out)
    assert prepared.eval.manifest.split_by == "hash"
    assert prepared.eval.verify() == []


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(
    corpus: Path, reference: dict[str, str], tmp_path: Path, workers: int
) -> None:
    prepare([str(corpus)], tmp_path, ByteTokenizer(), eval_fraction=0.2, workers=workers)
    assert contents(tmp_path) == reference


KILLED_RUN = """
import multiprocessing, os, signal, sys
from jaxscale.data.prepare import prepare
from jaxscale.data.tokenizers import ByteTokenizer

def die(progress):
    if (progress.phase, progress.done) == (sys.argv[3], int(sys.argv[4])):
        print("workers", *(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    sources, workers = [sys.argv[1]], int(sys.argv[5])
    prepare(sources, sys.argv[2], ByteTokenizer(), eval_fraction=0.2, workers=workers, progress=die)
"""


@dataclass(frozen=True)
class CountingTokenizer(ByteTokenizer):
    """Remembers what it was asked for."""

    texts: list[str] = field(default_factory=list)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.texts.extend(texts)
        return super().encode_batch(texts)


def run_until_killed(corpus: Path, out: Path, moment: tuple[str, int], workers: int) -> list[int]:
    """Process ids of the workers of a run that was killed (SIGKILL) after a file of a phase."""
    phase, done = moment
    script = out.parent / "killed_run.py"
    script.write_text(KILLED_RUN)
    command = [sys.executable, str(script), str(corpus), str(out), phase, str(done), str(workers)]
    # A file and not a pipe: workers that live on would keep a pipe open, and this test waiting.
    with (out.parent / "output.txt").open("w+") as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        output.seek(0)
        text = output.read()
    assert result.returncode == -signal.SIGKILL, text
    # Python's tracker of semaphores may say something too, about as many as were leaked.
    (line,) = (line for line in text.splitlines() if line.startswith("workers"))
    return [int(word) for word in line.split()[1:]]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until_gone(pids: list[int]) -> None:
    """Workers notice within seconds that the run is gone; until then they may still finish a part."""
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


@pytest.mark.parametrize(
    ("moment", "workers"),
    [(("hash", 2), 1), (("tokenize", 1), 2), (("tokenize", 4), 1), (("write", 3), 1)],
)
def test_a_killed_run_goes_on_where_it_stopped(
    corpus: Path,
    reference: dict[str, str],
    tmp_path: Path,
    moment: tuple[str, int],
    workers: int,
) -> None:
    out = tmp_path / "out"
    wait_until_gone(run_until_killed(corpus, out, moment, workers))
    for split in ("train", "eval"):
        with pytest.raises(UserError, match="there is no store"):
            Store.open(out / split)
    parts = [
        path for path in out.glob(".parts/*/part.json") if "unfinished" not in path.parent.name
    ]
    finished = {path: path.stat().st_mtime_ns for path in parts}
    assert len(finished) >= {"hash": 0, "tokenize": moment[1], "write": 6}[moment[0]]

    tokenizer = CountingTokenizer()
    kept: list[dict[Path, int]] = []

    def look(progress: Progress) -> None:
        if progress.phase == "write":
            kept.append({path: path.stat().st_mtime_ns for path in finished})

    prepare([str(corpus)], out, tokenizer, eval_fraction=0.2, progress=look)
    assert kept[0] == finished
    assert len(tokenizer.texts) == 40 * (6 - len(finished))
    assert contents(out) == reference


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_do_not_outlive_a_killed_run(corpus: Path, tmp_path: Path) -> None:
    pids = run_until_killed(corpus, tmp_path / "out", ("tokenize", 1), 2)
    assert len(pids) == 2
    wait_until_gone(pids)


def test_only_changed_files_are_tokenized_again_after_a_kill(tmp_path: Path) -> None:
    write_documents(tmp_path / "text")
    out = tmp_path / "out"
    run_until_killed(tmp_path / "text", out, ("write", 1), 1)
    before = {path.name for path in out.glob(".parts/*")}
    (tmp_path / "text" / "3.jsonl.gz").write_bytes(gzip.compress(b'{"text": "changed"}'))
    after: set[str] = set()

    def look(progress: Progress) -> None:
        if progress.phase == "write":
            after.update(path.name for path in out.glob(".parts/*"))

    source = str(tmp_path / "text")
    prepared = prepare([source], out, ByteTokenizer(), eval_fraction=0.2, progress=look)
    assert before < after
    assert len(after - before) == 1
    assert prepared.eval is not None
    everything = texts(prepared.train) + texts(prepared.eval)
    assert "changed" in everything
    assert not [text for text in everything if text.startswith("file 3")]


def test_a_finished_store_is_reused_and_a_changed_source_is_not(tmp_path: Path) -> None:
    write_documents(tmp_path / "text", num_files=2)
    source, out = str(tmp_path / "text"), tmp_path / "out"
    phases: list[str] = []

    def again(**options: float) -> bool:
        phases.clear()
        report = prepare([source], out, ByteTokenizer(), progress=note, **options)
        return report.reused

    def note(progress: Progress) -> None:
        phases.append(progress.phase)

    assert not again()
    assert again()
    assert set(phases) == {"hash"}
    assert not again(eval_fraction=0.3)
    assert again(eval_fraction=0.3)
    (tmp_path / "text" / "0.jsonl.gz").write_bytes(gzip.compress(b'{"text": "changed"}'))
    assert not again(eval_fraction=0.3)
    assert not again()
    assert not (out / "eval").exists()


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    write_documents(tmp_path / "text", num_files=1)
    out = tmp_path / "out"
    prepare([str(tmp_path / "text")], out, ByteTokenizer())
    (out / "train" / "manifest.json").write_text("{")
    assert not prepare([str(tmp_path / "text")], out, ByteTokenizer()).reused
    assert Store.open(out / "train").verify() == []


def test_another_tokenizer_needs_another_folder(corpus: Path, tmp_path: Path) -> None:
    ours, theirs = ByteTokenizer(), train_bpe(["some text"], 257)
    before = prepare([str(corpus)], tmp_path, ours).train.manifest
    with pytest.raises(UserError, match="or prepare the text again into another folder") as caught:
        prepare([str(corpus)], tmp_path, theirs)
    assert ours.fingerprint[:12] in str(caught.value)
    assert theirs.fingerprint[:12] in str(caught.value)
    assert Store.open(tmp_path / "train").manifest == before


def test_the_store_brings_its_tokenizer(moby_dick: Path, tmp_path: Path) -> None:
    text = moby_dick.read_text(encoding="utf-8")
    tokenizer = train_bpe([text], 2000)
    options = {"eval_fraction": 0.1, "document_separator": "\n\n\n"}
    prepared = prepare([str(moby_dick)], tmp_path, tokenizer, **options)
    assert prepared.eval is not None
    chapters = texts(prepared.train) + texts(prepared.eval)
    assert len(chapters) == 138
    assert set(chapters) == set(text.split("\n\n\n"))
    assert prepared.train.read(0, 9).dtype == np.uint16


def test_one_book_holds_out_its_end(moby_dick: Path, tmp_path: Path) -> None:
    prepared = prepare([str(moby_dick)], tmp_path, ByteTokenizer(), eval_fraction=0.05)
    assert prepared.eval is not None
    assert prepared.train.manifest.split_by == prepared.eval.manifest.split_by == "tail"
    ((head,), (tail,)) = texts(prepared.train), texts(prepared.eval)
    book = moby_dick.read_text(encoding="utf-8")
    assert head + tail == book
    assert head.endswith("\n\n")
    # The longest paragraph is under 1 % of the book, so the cut is within 0.5 % of the fraction.
    assert abs(len(tail) / len(book) - 0.05) < 0.005


def test_nothing_to_hold_out_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 50)
    with pytest.raises(UserError, match=r"nothing is left to evaluate on.*1 documents of 50 bytes"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "out", ByteTokenizer(), eval_fraction=0.1)


def test_sources_in_memory_can_be_prepared(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/prepare/a.jsonl", b'{"text": "from memory"}\n')
    prepared = prepare(["memory://prepare/a.jsonl"], tmp_path, ByteTokenizer())
    assert texts(prepared.train) == ["from memory"]


def test_equal_files_are_each_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    prepared = prepare([str(tmp_path)], tmp_path / "out", ByteTokenizer(), workers=2)
    assert texts(prepared.train) == ["the same", "the same"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_file_reaches_the_user_and_leaves_no_store(
    tmp_path: Path, workers: int
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"body": "not"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 2 has no 'text': it has 'body'"):
        prepare([str(tmp_path)], tmp_path / "out", ByteTokenizer(), workers=workers)
    with pytest.raises(UserError, match="there is no store"):
        Store.open(tmp_path / "out" / "train")


def test_options_that_make_no_sense_are_errors(corpus: Path, tmp_path: Path) -> None:
    for fraction in (-0.1, 1.0):
        with pytest.raises(UserError, match=f"eval_fraction is {fraction}"):
            prepare([str(corpus)], tmp_path, ByteTokenizer(), eval_fraction=fraction)
    with pytest.raises(UserError, match="document_separator is empty"):
        prepare([str(corpus)], tmp_path, ByteTokenizer(), document_separator="")
    with pytest.raises(UserError, match="not a local folder"):
        prepare([str(corpus)], "gs://bucket/out", ByteTokenizer())


def test_progress_counts_up_to_the_whole(corpus: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    prepared = prepare([str(corpus)], tmp_path, ByteTokenizer(), progress=seen.append)
    for phase in ("hash", "tokenize", "write"):
        mine = [progress for progress in seen if progress.phase == phase]
        assert [(p.done, p.total) for p in mine] == [(i, 6) for i in range(1, 7)]
        if phase != "hash":
            assert mine[-1].count.tokens == prepared.train.num_tokens


def test_workers_never_import_jax() -> None:
    """What a worker imports: the module of its work, and the libraries that work uses."""
    script = (
        "import sys, jaxscale.data.parts, jaxscale.data.workers, tensorstore, tokenizers, pyarrow\n"
        "assert not {'jax', 'grain', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)


def test_importing_the_data_layer_is_light() -> None:
    script = (
        "import sys, jaxscale.data.loader, jaxscale.data.prepare, jaxscale.data.inspect\n"
        "heavy = {'jax', 'grain', 'tensorstore', 'tokenizers', 'pyarrow', 'fsspec', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)
