import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from jaxscale.data.loader import Batches
from jaxscale.data.mixture import Mixture, Source
from jaxscale.data.prepare import prepare
from jaxscale.data.store import Store, StoreWriter, check_tokenizer, token_dtype
from jaxscale.data.tokenizers import ByteTokenizer, train_bpe
from jaxscale.errors import UserError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of 300 short documents with its own BPE."""
    texts = [f"document {i} says {'very ' * (i % 9)}little" for i in range(300)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    tokenizer = train_bpe(texts, 300)
    out = tmp_path / "out"
    return prepare([str(tmp_path / "a.txt")], out, tokenizer, document_separator="\n").train


def test_documents_are_where_the_offsets_say(store: Store) -> None:
    tokenizer = store.tokenizer()
    offsets = store.document_offsets
    assert offsets.dtype == np.int64
    assert len(offsets) == store.manifest.num_documents + 1 == 301
    tokens = store.read(int(offsets[17]), int(offsets[18]))
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens[:-1].tolist()) == f"document 17 says {'very ' * 8}little"
    assert tokens[-1] == tokenizer.eod_id
    everywhere = store.read(0, store.num_tokens)
    assert np.flatnonzero(everywhere == tokenizer.eod_id).tolist() == (offsets[1:] - 1).tolist()


def test_a_token_is_traced_to_its_document(store: Store) -> None:
    offsets = store.document_offsets
    for token in (0, 1, int(offsets[100]) - 1, int(offsets[100]), store.num_tokens - 1):
        expected = np.searchsorted(offsets, token, side="right") - 1
        assert store.document_at(token) == expected


def test_reading_outside_the_store_is_our_mistake(store: Store) -> None:
    for start, stop in ((-1, 3), (5, 4), (0, store.num_tokens + 1)):
        with pytest.raises(IndexError):
            store.read(start, stop)


def test_other_software_reads_the_arrays(store: Store) -> None:
    """The arrays are plain Zarr 3: opened here by a bare TensorStore spec."""
    array = ts.open({"driver": "zarr3", "kvstore": f"file://{store.path}/tokens"}).result()
    np.testing.assert_array_equal(array.read().result(), store.read(0, store.num_tokens))


def test_tokens_take_two_bytes_while_they_can() -> None:
    assert [token_dtype(n) for n in (257, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


def test_arrays_longer_than_a_file_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxscale.data.arrays.SHARD", 64)
    monkeypatch.setattr("jaxscale.data.arrays.CHUNK", 16)
    tokens = np.arange(1, 301, dtype=np.uint32)
    writer = StoreWriter(tmp_path, 300, 3, vocab_size=1 << 20)
    for start, stop in ((0, 10), (10, 230), (230, 300)):
        writer.append(tokens[start:stop], np.array([stop - start], np.int64))
    writer.finish()
    array = ts.open({"driver": "zarr3", "kvstore": f"file://{tmp_path}/tokens"}).result()
    np.testing.assert_array_equal(array.read().result(), tokens)
    assert len(list((tmp_path / "tokens" / "c").iterdir())) == 5
    offsets = ts.open({"driver": "zarr3", "kvstore": f"file://{tmp_path}/document_offsets"})
    assert offsets.result().read().result().tolist() == [0, 10, 230, 300]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_whole_store_has_no_problems(store: Store) -> None:
    assert store.verify() == []


@pytest.mark.parametrize("array", ["tokens", "document_offsets"])
@pytest.mark.parametrize("place", [10, -3])  # In the contents, and in the index at the end.
def test_a_flipped_byte_is_named(store: Store, array: str, place: int) -> None:
    flip(Path(store.path) / array / "c" / "0", place)
    problems = Store.open(store.path).verify()
    assert len(problems) == 1
    assert problems[0].startswith(f"{array} cannot be read (DATA_LOSS")


def test_changed_contents_are_named_even_if_the_array_is_sound(store: Store) -> None:
    array = ts.open({"driver": "zarr3", "kvstore": f"file://{store.path}/tokens"}).result()
    array[3] = 299
    (problem,) = store.verify()
    assert problem.startswith("tokens has SHA-256 ")


def test_a_damaged_tokenizer_is_named(store: Store) -> None:
    file = Path(store.path) / "tokenizer.json"
    file.write_text(file.read_text().replace("ittle", "ottle", 1))
    (problem,) = store.verify()
    assert problem.startswith("tokenizer.json: ")
    with pytest.raises(UserError, match="another tokenizer"):
        store.tokenizer()
    for content in ("{", "{}"):
        file.write_text(content)
        assert "is not a tokenizer" in store.verify()[0]
    file.unlink()
    assert "there is no tokenizer at" in store.verify()[0]


def test_a_changed_manifest_is_named(store: Store) -> None:
    file = Path(store.path) / "manifest.json"
    file.write_text(file.read_text().replace('"num_documents": 300', '"num_documents": 299'))
    assert store.verify()[0].startswith("manifest.json: ")
    with pytest.raises(UserError, match="does not match its checksum"):
        Store.open(store.path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "{"])
def test_a_manifest_that_is_not_one_is_an_error(store: Store, content: str) -> None:
    (Path(store.path) / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Store.open(store.path)


def test_a_store_of_another_format_is_an_error(store: Store) -> None:
    file = Path(store.path) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 9}))
    with pytest.raises(UserError, match="has format 9, this version of jaxscale reads 1"):
        Store.open(store.path)


def test_a_folder_without_a_manifest_is_not_a_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder does not exist.*data prepare"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"did you mean .*out/train\?"):
        Store.open(tmp_path / "out")
    with pytest.raises(UserError, match=r"it holds a\.txt, out"):
        Store.open(tmp_path)
    (Path(store.path) / "manifest.json").unlink()
    with pytest.raises(UserError, match="so it was never finished"):
        Store.open(store.path)


def test_a_missing_array_is_named(store: Store) -> None:
    (Path(store.path) / "tokens" / "zarr.json").unlink()
    with pytest.raises(UserError, match="is damaged: tokens cannot be opened"):
        Store.open(store.path)


def test_an_array_of_the_wrong_length_is_named(store: Store) -> None:
    file = Path(store.path) / "document_offsets" / "zarr.json"
    file.write_text(file.read_text().replace("[301]", "[300]"))
    with pytest.raises(UserError, match=r"length and type \(300, 'int64'\), the manifest says"):
        Store.open(store.path)


def test_training_on_a_damaged_chunk_says_which_store(store: Store) -> None:
    flip(Path(store.path) / "tokens" / "c" / "0", 10)
    batches = Batches(Mixture.of(Store.open(store.path)), sequence_length=64, global_batch=8)
    with pytest.raises(UserError, match=r"out/train is damaged \(DATA_LOSS"):
        batches.rows(0)


def test_another_tokenizer_is_an_error(store: Store) -> None:
    check_tokenizer(store, store.tokenizer())
    other = ByteTokenizer()
    with pytest.raises(UserError) as caught:
        check_tokenizer(store, other)
    assert other.fingerprint[:12] in str(caught.value)
    assert store.tokenizer().fingerprint[:12] in str(caught.value)


def test_a_mixture_needs_one_tokenizer(store: Store, tmp_path: Path) -> None:
    other = prepare([str(tmp_path / "a.txt")], tmp_path / "other", ByteTokenizer()).train
    with pytest.raises(UserError, match="the stores of a mixture need one tokenizer"):
        Mixture((Source("a", store), Source("b", other)))
