"""Every kind of bad directory is refused by one message that names the file, the tensor and the numbers."""

import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import file_size_limit
from cli_cases import call
from export_cases import contents
from interop_cases import WIDE, Tensors, random_tensors, save_shards, shard_name, write_hf
from models_cases import section

from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.run_directory import import_model

UP = "model.layers.1.mlp.up_proj.weight"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_hf(str(folder))
    return str(caught.value)


def with_tensors(folder: Path, change: Callable[[Tensors], None]) -> str:
    tensors = random_tensors(WIDE)
    change(tensors)
    write_hf(folder, tensors=tensors)
    return refusal(folder)


def test_missing_and_unknown_tensors_are_named_with_their_shapes(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.extra.weight"] = tensors.pop(UP)

    message = with_tensors(tmp_path, change)
    assert "(2 differ)" in message
    assert f"missing: {UP} [40, 32]" in message
    assert "not known: model.layers.1.mlp.extra.weight [40, 32]" in message


def test_a_wrong_shape_is_named_with_both(tmp_path: Path) -> None:
    message = with_tensors(tmp_path, lambda tensors: tensors.update({UP: np.zeros((41, 32), "f4")}))
    assert f"{UP} is [41, 32] in the files, [40, 32] in the model" in message


def test_many_differences_are_counted_and_some_shown(tmp_path: Path) -> None:
    message = with_tensors(tmp_path, dict.clear)
    assert "(21 differ)" in message
    assert "and 9 more" in message


def test_a_bias_that_the_family_has_not_is_refused(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    message = with_tensors(tmp_path, lambda tensors: tensors.update({name: np.zeros(48, "f4")}))
    assert f"not known: {name} [48]" in message


@pytest.mark.parametrize(
    ("tied", "embedding"),
    [
        (WIDE.model_copy(update={"tied_embeddings": True}), "model.embed_tokens.weight"),
        (section("gpt2"), "transformer.wte.weight"),
    ],
)
def test_a_head_beside_tied_embeddings_must_be_their_copy(
    tied: ModelSection, embedding: str, tmp_path: Path
) -> None:
    tensors = random_tensors(tied)
    head = tensors[embedding].copy()
    write_hf(tmp_path, tied, tensors={**tensors, "lm_head.weight": head})
    assert "head/table" not in open_hf(str(tmp_path)).model.description
    head[-1, -1] += 1
    write_hf(tmp_path, tied, tensors={**tensors, "lm_head.weight": head})
    assert f"is not a copy of {embedding}" in refusal(tmp_path)
    write_hf(tmp_path, tied, tensors={**tensors, "lm_head.weight": head[1:].copy()})
    assert f"is not a copy of {embedding}" in refusal(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    message = with_tensors(tmp_path, lambda tensors: tensors.update({UP: np.zeros((40, 32), "i1")}))
    assert f"{UP} is I8; jaxscale reads F64, F32, F16, BF16" in message


def test_a_truncated_file_is_named_with_the_first_tensor_that_is_cut(tmp_path: Path) -> None:
    write_hf(tmp_path, num_shards=2)
    file = tmp_path / shard_name(1, 2)
    file.write_bytes(file.read_bytes()[:-1000])
    message = refusal(tmp_path)
    assert f"{file} is truncated: model.layers" in message
    assert "Download it again" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it has 0 bytes"),
        (b"version https://git-lfs", "should begin with a header of"),
        ((20).to_bytes(8, "little") + b"not a JSON object at", "damaged header"),
        ((2).to_bytes(8, "little") + b"[]", "damaged header"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "damaged header"),
    ],
    ids=["empty", "a pointer", "no JSON", "a list", "no fields"],
)
def test_what_is_no_safetensors_file_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    write_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    message = refusal(tmp_path)
    assert str(tmp_path / "model.safetensors") in message
    assert words in message


@pytest.mark.parametrize(
    ("shape", "offsets", "tail", "words"),
    [
        ([2], [0, 4], 0, "a of F32"),
        ([2], [4, 12], 4, "a begins at byte 4 of the data, not at 0"),
        ([2], [0, 8], 3, "3 bytes follow its last tensor"),
    ],
    ids=["too few bytes", "a gap", "a tail"],
)
def test_a_header_that_contradicts_itself_is_refused(
    shape: list[int], offsets: list[int], tail: int, words: str, tmp_path: Path
) -> None:
    write_hf(tmp_path)
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8 + tail)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert words in refusal(tmp_path)


def test_flipped_bits_that_make_no_number_are_found_while_reading(tmp_path: Path) -> None:
    tensors = random_tensors(WIDE)
    tensors[UP][3, 5] = np.nan
    write_hf(tmp_path / "hf", tensors=tensors)
    with pytest.raises(UserError, match=rf"{UP} has 1 values that are infinite or not a number"):
        import_model(open_hf(str(tmp_path / "hf")), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    write_hf(tmp_path, num_shards=3)
    (tmp_path / shard_name(1, 3)).unlink()
    assert f"lacks {shard_name(1, 3)}, which model.safetensors.index.json names" in refusal(
        tmp_path
    )
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "lacks part [2] of 3" in refusal(tmp_path)


def test_parts_without_an_index_are_read_all_the_same(tmp_path: Path) -> None:
    write_hf(tmp_path, num_shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert open_hf(str(tmp_path)).section.num_layers == 2


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    write_hf(tmp_path, num_shards=2)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json is damaged" in refusal(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    tensors = write_hf(tmp_path, num_shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_shards(tmp_path, tensors, 1)
    both = f"{tmp_path / shard_name(0, 2)} and in {tmp_path / 'model.safetensors'}"
    assert f"is in {both}: keep one of them" in refusal(tmp_path)


def test_pickles_are_refused_with_the_safe_way_to_convert_them(tmp_path: Path) -> None:
    write_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    message = refusal(tmp_path)
    assert "pytorch_model.bin: a pickle runs whatever code it holds" in message
    assert "weights_only=True" in message


def test_the_safe_way_to_convert_pickles_works_as_printed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = write_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    held = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(held, tmp_path / "pytorch_model.bin")
    program, *arguments = shlex.split(refusal(tmp_path).splitlines()[-1])
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    box = (slice(1, 2), slice(0, 32), slice(0, 40))
    up = open_hf(str(tmp_path)).read("layers/mlp/up", box)
    np.testing.assert_array_equal(up[0].T, tensors[UP])


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model.safetensors", "has no *.safetensors file"),
        ("config.json", "has no config.json"),
    ],
)
def test_directories_that_lack_a_file_say_which(missing: str, words: str, tmp_path: Path) -> None:
    write_hf(tmp_path)
    (tmp_path / missing).unlink()
    assert words in refusal(tmp_path)


def test_what_is_no_directory_says_so(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is a file, not a directory" in refusal(tmp_path / "file")
    with pytest.raises(UserError, match="nothing://x cannot be opened"):
        open_hf("nothing://x")


def test_a_config_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    write_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json holds no object" in refusal(tmp_path)


def test_a_target_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        import_model(open_hf(str(tmp_path / "hf")), out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_model_without_tokenizer_json_is_refused_with_the_command_that_makes_it(
    tmp_path: Path,
) -> None:
    write_hf(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").unlink()
    with pytest.raises(UserError, match="AutoTokenizer"):
        import_model(open_hf(str(tmp_path / "hf")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without_a_tensor(folder: Path) -> None:
    tensors = random_tensors(WIDE)
    del tensors[UP]
    save_shards(folder, tensors, 1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: _config(folder, model_type="llamba", d_state=4), "Nearest: llama"),
        (lambda folder: _config(folder, model_type=None), "it has no model_type"),
        (_cut, "model.safetensors is truncated: model.norm.weight ends"),
        (_pickled, "weights_only=True"),
        (_without_a_tensor, f"missing: {UP} [40, 32]"),
    ],
)
def test_a_user_reads_one_message_and_nothing_is_written_anywhere(
    spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    write_hf(tmp_path / "hf")
    spoil(tmp_path / "hf")
    before = contents(tmp_path)
    answer = call("import", "hf", tmp_path / "hf", tmp_path / "run")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert words in answer.err
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_leaves_nothing_of_an_import(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    before = contents(tmp_path)
    with file_size_limit(60_000):
        answer = call("import", "hf", tmp_path / "hf", tmp_path / "run")
    assert answer.status == 2
    assert answer.err.endswith("failed, nothing is left of it: File too large\n")
    assert contents(tmp_path) == before
