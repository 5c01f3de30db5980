import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe
from jaxscale.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def book(moby_dick: Path) -> str:
    return moby_dick.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bpe(book: str) -> Tokenizer:
    return train_bpe([book], 1000)


def test_bytes_are_ids() -> None:
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (257, 256)
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3, 0xA9, 256]) == "aé<|endoftext|>"
    assert tokenizer.decode([0xC3]) == "\ufffd"
    lengths = tokenizer.token_byte_lengths()
    assert lengths is not None
    assert lengths.tolist() == [1] * 256 + [0]


def test_bpe_gives_the_real_text_back(bpe: Tokenizer, book: str) -> None:
    ids = bpe.encode(book)
    assert bpe.decode(ids) == book
    assert bpe.vocab_size == 1000
    assert max(ids) < 1000
    assert bpe.eod_id not in ids
    assert len(ids) < len(book) / 2.5  # Real merges: well over two characters a token.


@given(text=TEXT)
def test_bpe_gives_any_text_back(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


@given(texts=st.lists(TEXT, max_size=4))
def test_a_batch_is_its_texts_one_by_one(bpe: Tokenizer, texts: list[str]) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(text=TEXT)
def test_byte_lengths_add_up_to_the_text(bpe: Tokenizer, text: str) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        lengths = tokenizer.token_byte_lengths()
        assert lengths is not None
        ids = tokenizer.encode(text)
        assert lengths[np.array(ids, int)].sum() == len(text.encode())
        assert lengths[tokenizer.eod_id] == 0


def test_training_is_deterministic_across_processes(bpe: Tokenizer, moby_dick: Path) -> None:
    script = (
        "import sys; from jaxscale.data.tokenizers import train_bpe\n"
        "text = open(sys.argv[1], encoding='utf-8').read()\n"
        "print(train_bpe([text], 1000).fingerprint)"
    )
    command = [sys.executable, "-c", script, str(moby_dick)]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert output.strip() == bpe.fingerprint


def test_a_document_cannot_end_itself(bpe: Tokenizer) -> None:
    ids = bpe.encode("before<|endoftext|>after")
    assert bpe.eod_id not in ids
    assert bpe.decode(ids) == "before<|endoftext|>after"


def test_a_saved_tokenizer_is_the_same(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    for spec in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(spec))
        assert loaded.fingerprint == bpe.fingerprint
        assert loaded.encode("Call me Ishmael.") == bpe.encode("Call me Ishmael.")


def test_fingerprints_tell_tokenizers_apart(bpe: Tokenizer, book: str, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    other_end = load_tokenizer(str(tmp_path), eod=5)
    prints = {
        t.fingerprint for t in (bpe, other_end, train_bpe([book[:5000]], 1000), ByteTokenizer())
    }
    assert len(prints) == 4
    assert all(len(print_) == 64 for print_ in prints)


def edited(bpe: Tokenizer, folder: Path, **changes: object) -> Path:
    bpe.save(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))
    return file


def test_the_end_of_document_is_found_by_its_common_names(bpe: Tokenizer, tmp_path: Path) -> None:
    file = edited(bpe, tmp_path)
    text = file.read_text(encoding="utf-8")
    for name in ("</s>", "<eos>", "<|im_end|>", "<|end_of_text|>"):
        file.write_text(text.replace("<|endoftext|>", name), encoding="utf-8")
        assert load_tokenizer(str(file)).eod_id == bpe.eod_id
    file.write_text(text.replace("<|endoftext|>", "<stop>"), encoding="utf-8")
    with pytest.raises(UserError, match=r"none of the end-of-document tokens <\|endoftext\|>, "):
        load_tokenizer(str(file))
    assert load_tokenizer(str(file), eod="<stop>").eod_id == bpe.eod_id
    assert load_tokenizer(str(file), eod=7).eod_id == 7
    with pytest.raises(UserError, match="no token with id 5000"):
        load_tokenizer(str(file), eod=5000)


def test_truncation_and_padding_in_the_file_do_not_cut_text(bpe: Tokenizer, tmp_path: Path) -> None:
    cut = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    file = edited(bpe, tmp_path, truncation=cut)
    text = "a long enough sentence"
    assert load_tokenizer(str(file)).encode(text) == bpe.encode(text)


def test_byte_lengths_are_not_guessed_for_tokens_that_are_not_bytes(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    assert load_tokenizer(str(edited(bpe, tmp_path, decoder=spaces))).token_byte_lengths() is None


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at 'nowhere'"):
        load_tokenizer("nowhere")
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path))
    file = tmp_path / "tokenizer.json"
    for content, message in (
        (b"{", "Expecting property name"),
        (b"{}", "without a 'model'"),
        (b"\xff", "utf-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_tokenizer(str(file))
    with pytest.raises(UserError, match=r"at least 257 tokens .*, 256 were asked for"):
        train_bpe(["text"], 256)
