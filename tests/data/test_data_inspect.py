import io

from rich.console import Console

from jaxscale.data.inspect import render_batch
from jaxscale.data.loader import eval_batches
from jaxscale.data.prepare import prepare
from jaxscale.data.store import Store
from jaxscale.data.tokenizers import ByteTokenizer


def store_of_text(folder, text: str) -> Store:
    (folder / "a.txt").write_text(text, encoding="utf-8", newline="")
    source = str(folder / "a.txt")
    return prepare([source], folder / "out", ByteTokenizer(), document_separator="@").train


def test_borders_masks_and_padding_are_seen(tmp_path) -> None:
    store = store_of_text(tmp_path, "ab\tc@é\x1b[1m")
    (batch,) = eval_batches(store, sequence_length=14, batch=1)
    plain = render_batch(batch, ByteTokenizer()).plain
    assert plain.splitlines() == [
        "row 0: 12 of 14 tokens, documents: 2, targets: 10",
        r"┃1 ab\tc[<|endoftext|>]┃2 é\x1b[1m[<|endoftext|>]┃padding x 2",
        "",
    ]


def test_only_the_first_rows_are_shown(tmp_path) -> None:
    store = store_of_text(tmp_path, "abcdefgh" * 4)
    (batch,) = eval_batches(store, sequence_length=8, batch=5)
    plain = render_batch(batch, ByteTokenizer(), max_rows=2).plain
    assert plain.count("row ") == 2
    assert "and 3 more rows of 8 tokens" in plain


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path) -> None:
    store = store_of_text(tmp_path, "[bold]x[/bold]")
    (batch,) = eval_batches(store, sequence_length=16, batch=1)
    console = Console(file=io.StringIO(), width=200)
    console.print(render_batch(batch, ByteTokenizer()))
    assert "[bold]x[/bold]" in console.file.getvalue()
