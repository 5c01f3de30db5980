"""`export_hf` writes what transformers and our own import read, the same bytes whatever mesh trained the model."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_cases import STEP, Arrays, contents, index_of, random_arrays, save_run, tensors_of
from interop_cases import WIDE
from models_cases import random_tokens, section

from jaxscale.config.plan import Plan
from jaxscale.data.tokenizers import BYTES, load_tokenizer, train_bpe
from jaxscale.errors import UserError
from jaxscale.interop import tensor_source
from jaxscale.interop.export_hf import export_hf
from jaxscale.interop.export_job import ExportOptions
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.layout import whole
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, bind, blueprint

BF16 = jnp.dtype(jnp.bfloat16)
# Every tensor in several pieces: even a vector of the tiny models has over 64 bytes.
SMALL = ExportOptions(piece_bytes=64, max_shard_bytes=6_000)


# One of each Hugging Face family, the awkward ones.
FAMILIES = (
    "gpt3 with its own mlp",
    "llama3.2, tied",
    "mistral, short window",
    "qwen2",
    "qwen3",
    "gemma2, odd layers",
    "gemma3, fewer layers than the pattern",
)


@dataclass(frozen=True)
class Case:
    """A model of `CASES`, exported."""

    model: Blueprint
    arrays: Arrays
    hf: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(name: str) -> Case:
        folder, arrays = tmp_path_factory.mktemp("export"), random_arrays(section(name))
        run = save_run(folder / "run", section(name), arrays)
        export_hf(run, folder / "hf", options=SMALL)
        return Case(blueprint(model_builder(section(name))), arrays, folder / "hf")

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_computes_our_logits_from_an_export(
    name: str, exported: Callable[[str], Case]
) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from models_hf_oracle import hf_logits

    case = exported(name)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        case.hf, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report  # Nothing missing, unexpected or of another shape.
    tokens = random_tokens()
    expected = hf_logits(theirs.eval(), tokens)
    ours = jax.jit(lambda p, t: bind(case.model, p)(t))(case.arrays, tokens)
    # fp32 rounds at 6e-8; a dozen chained products of width 30 leave about 1e-6 of the largest logit.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [*FAMILIES, "llama2, odd heads", "gemma3, pattern of three"])
def test_import_of_an_export_is_the_same_to_the_bit(
    name: str, exported: Callable[[str], Case]
) -> None:
    case = exported(name)
    back = open_hf(str(case.hf))
    assert {path: spec.shape for path, spec in back.model.description.items()} == {
        path: array.shape for path, array in case.arrays.items()
    }
    for path, array in case.arrays.items():
        np.testing.assert_array_equal(back.read(path, whole(array.shape)), array, err_msg=path)


# An odd number of layers: the stages of a pipeline hold one and two, and padding.
DEEP = WIDE.model_copy(update={"num_layers": 3})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export of a model that one device trained."""
    folder = tmp_path_factory.mktemp("alone")
    run = save_run(folder / "run", DEEP, random_arrays(DEEP))
    export_hf(run, folder / "hf", dtype=BF16, options=SMALL)
    return contents(folder / "hf")


@pytest.mark.parametrize("elements", [1, 50])
def test_the_bytes_do_not_depend_on_how_much_is_read_at_once(
    elements: int, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_source, "STRIP_ELEMENTS", elements)
    run = save_run(tmp_path / "run", DEEP, random_arrays(DEEP), plan=Plan(fsdp=4))
    options = ExportOptions(max_shard_bytes=SMALL.max_shard_bytes)
    made = export_hf(run, tmp_path / "hf", dtype=BF16, options=options)
    assert len(made.files) > 1
    for name in made.files:
        assert (tmp_path / "hf" / name).read_bytes() == alone[name], name


@pytest.mark.parametrize(
    "plan",
    [
        Plan(fsdp=8),
        Plan(tensor=8),
        Plan(data=2, fsdp=2, tensor=2),
        Plan(pipeline=2, fsdp=2, tensor=2, microbatches=4, stage_layers=[1, 2]),
    ],
    ids=lambda plan: " ".join(f"{axis} {n}" for axis, n in plan.mesh_shape.items() if n > 1),
)
def test_every_mesh_exports_the_same_bytes(
    plan: Plan, alone: dict[str, bytes], tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", DEEP, random_arrays(DEEP), plan=plan)
    export_hf(run, tmp_path / "hf", dtype=BF16, options=SMALL)
    mesh = contents(tmp_path / "hf")
    assert mesh.keys() == alone.keys()
    for name in alone.keys() - {"README.md", "export.json"}:  # They tell of the layout.
        assert mesh[name] == alone[name], name


def test_values_are_rounded_to_the_nearest_of_the_dtype(tmp_path: Path) -> None:
    arrays = random_arrays(WIDE)
    run = save_run(tmp_path / "run", WIDE, arrays, plan=Plan(fsdp=8))
    export_hf(run, tmp_path / "hf", dtype=np.dtype(np.float16), options=SMALL)
    tensors = tensors_of(tmp_path / "hf")
    up = tensors["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(up, arrays["layers/mlp/up"][1].T.astype(np.float16))
    table = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(table, arrays["embedding/table"].astype(np.float16))


def test_files_keep_their_size_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE))
    made = export_hf(run, tmp_path / "hf", options=ExportOptions(max_shard_bytes=20_000))
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert files == list(made.files)
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = index_of(tmp_path / "hf")
    tensors = tensors_of(tmp_path / "hf")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in tensors.values())
    for file in files:
        own = [tensors[name].nbytes for name, at in index["weight_map"].items() if at == file]
        # The table of 272 x 32 floats is larger than a file may be, so it has one of its own.
        assert sum(own) <= 20_000 or own == [272 * 32 * 4]


def test_the_sum_of_each_tensor_is_that_of_its_bytes_however_it_was_cut(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE))
    export_hf(run, tmp_path / "hf", options=SMALL)
    record = json.loads((tmp_path / "hf/export.json").read_text())["files"]
    assert len(record) > 1
    for file, entry in record.items():
        content = (tmp_path / "hf" / file).read_bytes()
        for name, tensor in entry["tensors"].items():
            start = tensor["offset"]
            whole = content[start : start + tensor["bytes"]]
            assert int(tensor["crc32"], 16) == zlib.crc32(whole), name


def test_a_model_that_fits_one_file_has_no_index(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE))
    assert export_hf(run, tmp_path / "hf").files == ("model.safetensors",)
    assert not (tmp_path / "hf" / "model.safetensors.index.json").exists()


def test_the_average_is_exported_where_it_was_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    arrays = random_arrays(WIDE)
    run = save_run(tmp_path / "run", WIDE, arrays, part="average")
    export_hf(run, tmp_path / "average")
    export_hf(run, tmp_path / "params", part="params")
    name, ours = "model.norm.weight", arrays["final_norm/scale"]
    np.testing.assert_array_equal(tensors_of(tmp_path / "average")[name], ours)
    assert not tensors_of(tmp_path / "params")[name].any()
    assert "moving average" in (tmp_path / "average" / "README.md").read_text()


def test_text_has_the_same_ids_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = "The whale, naïve \n\n  «Ω» 鯨 \x00\x7f\xad 12,345"
    trained = train_bpe([text * 20], 272)
    for name, tokenizer in (("bytes", None), ("bpe", trained)):
        run = save_run(tmp_path / name, WIDE, random_arrays(WIDE), tokenizer=tokenizer)
        export_hf(run, tmp_path / f"hf {name}")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / f"hf {name}")
        ours = tokenizer or load_tokenizer(BYTES)
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
        assert theirs.eos_token_id == ours.eod_id


def test_the_card_tells_of_the_run_and_nothing_of_the_machine(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE), plan=Plan(fsdp=8))
    records = [
        {"step": STEP, "loss": 2.5},
        {"step": STEP, "eval_loss": 2.75},
        {"step": STEP + 1, "loss": 1},
    ]
    lines = "".join(f"{record}\n".replace("'", '"') for record in records)
    (run / "metrics.jsonl").write_text(lines)
    export_hf(run, tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "# tiny" in card
    # Seven steps of four rows of 512 tokens.
    assert "7 of 10 steps, 14,336 tokens" in card
    assert "fsdp 8" in card
    assert "2.5000 nats" in card
    assert "2.7500 nats" in card
    assert "books.txt" in card
    assert "/secret" not in card


def test_a_checkpoint_without_its_run_is_exported_too(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE))
    (run / "checkpoints" / str(STEP)).rename(tmp_path / str(STEP))
    export_hf(tmp_path / str(STEP), tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").is_file()  # Bytes need no file of the run's.


def test_a_model_of_the_users_own_has_no_hugging_face_form(tmp_path: Path) -> None:
    from jaxscale.interop.hf_config import to_hf_config

    with pytest.raises(UserError, match="only models of a family"):
        to_hf_config(section("gpt2").model_copy(update={"family": None, "build": "my.py:build"}))
