"""The exported programs compute what the model computes, also where there is no jaxscale."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_cases import random_arrays, save_run
from flax import nnx
from interop_cases import WIDE
from jax import export as jax_export
from models_cases import SEQUENCE, VOCAB, architecture, make_blueprint, random_tokens, section

from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.interop.export_job import ExportOptions
from jaxscale.interop.stablehlo import PLATFORMS, Programs, export_stablehlo, make_programs
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, Params, bind, blueprint

# Learned positions and biases; a window shorter than the row, soft caps, a group of keys.
FAMILIES = {"gpt2": 1, "gemma2, odd layers": 3}
FLOAT32, BF16 = np.dtype(np.float32), jnp.dtype(jnp.bfloat16)
PROMPT = [84, 104, 101, 32]


def sized(name: str) -> Blueprint:
    return make_blueprint(name, num_layers=FAMILIES.get(name, 1))


def programs_of(name: str, length: int | None = None) -> tuple[Programs, Params]:
    model, arrays = sized(name), random_arrays(section(name, num_layers=FAMILIES.get(name, 1)))
    programs = make_programs(model, dict.fromkeys(arrays, FLOAT32), length)
    return programs, {path: jnp.asarray(array) for path, array in arrays.items()}


def restored(program: jax_export.Exported) -> jax_export.Exported:
    return jax_export.deserialize(program.serialize())


def logits_of(name: str, params: Params, tokens: np.ndarray) -> np.ndarray:
    model = sized(name)
    return np.asarray(jax.jit(lambda p, t: bind(model, p)(t))(params, tokens))


def assert_close(found: jax.Array, expected: np.ndarray) -> None:
    # fp32 rounds at 6e-8; a dozen chained products of width 30 leave about 1e-6 of the largest logit.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_any_batch_and_length_gives_the_logits_of_the_model(name: str) -> None:
    programs, params = programs_of(name)
    assert programs.forward.platforms == PLATFORMS
    call = jax.jit(restored(programs.forward).call)
    for shape in ((2, SEQUENCE), (1, 7)):
        tokens = random_tokens(shape=shape)
        assert_close(call(params, tokens), logits_of(name, params, tokens))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cached_step_gives_the_logits_of_the_whole_pass(name: str) -> None:
    """A prompt of nine and a padded one of four, then token by token."""
    programs, params = programs_of(name)
    assert programs.decode is not None
    call = jax.jit(restored(programs.decode).call)
    tokens, arch = random_tokens(), architecture(name, num_layers=FAMILIES[name])
    expected = logits_of(name, params, tokens)
    shape = (arch.num_layers, 2, SEQUENCE, arch.num_kv_heads, arch.head_dim)
    key, value = jnp.zeros(shape), jnp.zeros(shape)
    lengths, positions = np.array([9, 4], np.int32), np.tile(np.arange(9, dtype=np.int32), (2, 1))
    logits, key, value = call(params, tokens[:, :9], positions, lengths - 1, key, value)
    for step in range(8):
        at = lengths + step
        assert_close(logits, expected[np.arange(2), at - 1])
        new = tokens[np.arange(2), at][:, None]
        logits, key, value = call(params, new, at[:, None], np.zeros(2, np.int32), key, value)


def test_learned_positions_bound_the_symbolic_length() -> None:
    programs, params = programs_of("gpt2")
    assert programs.limits == ("sequence <= 48", "new <= 48")
    with pytest.raises(ValueError, match=r"refin|<= 48"):
        restored(programs.forward).call(params, np.zeros((1, 49), np.int32))


def test_a_fixed_length_goes_over_blocks_of_queries() -> None:
    """No array of all scores: 2,048 x 2,048 of them, for 6 heads."""
    programs, _ = programs_of("llama3, grouped", 2048)
    assert programs.forward.in_avals[-1].shape[1] == 2048
    assert "2048x2048" not in programs.forward.mlir_module()
    any_length, _ = programs_of("llama3, grouped")
    assert "?x?x" in any_length.forward.mlir_module()


class Own(nnx.Module):
    """A user's model, which keeps no cache; its code asks for the length of a row where `odd`."""

    logit_softcap = 2.0

    def __init__(self, *, odd: bool, rngs: nnx.Rngs) -> None:
        table = jax.random.normal(rngs.params(), (VOCAB, 8))
        self.table, self.odd = nnx.Param(table, axes=("vocab", "embed")), odd

    def hidden(self, tokens: jax.Array, *_ignored: jax.Array | None) -> jax.Array:
        assert not self.odd or tokens.shape[1] > 3
        return jnp.cumsum(self.table[...][tokens], axis=1)

    def output_table(self) -> jax.Array:
        return self.table[...]


def test_a_model_of_the_users_own_is_exported_without_a_cache() -> None:
    model = blueprint(lambda rngs: Own(odd=False, rngs=rngs))
    programs = make_programs(model, {"table": FLOAT32})
    assert programs.decode is None
    table = np.random.default_rng(0).standard_normal((VOCAB, 8), np.float32)
    tokens = random_tokens()
    plain = np.cumsum(table[tokens], axis=1) @ table.T
    found = restored(programs.forward).call({"table": jnp.asarray(table)}, tokens)
    assert_close(found, 2.0 * np.tanh(plain / 2.0))


def test_a_model_that_must_know_the_length_is_told_how() -> None:
    model = blueprint(lambda rngs: Own(odd=True, rngs=rngs))
    with pytest.raises(UserError, match="give --sequence-length"):
        make_programs(model, {"table": FLOAT32})
    assert make_programs(model, {"table": FLOAT32}, 5).forward.in_avals[-1].shape[1] == 5


# `None` in sys.modules makes an import fail, wherever jaxscale is installed.
STRANGER = """
import runpy, sys
sys.modules["jaxscale"] = None
try:
    import jaxscale
except ImportError:
    pass
else:
    raise SystemExit("jaxscale can be imported")
import numpy as np
script, *sys.argv[1:], out = sys.argv[1:]
found = runpy.run_path(script)
assert "flax" not in sys.modules
np.save(out, np.asarray(found["logits"], np.float32))
"""


def stranger(script: Path, *tokens: int) -> tuple[np.ndarray, str]:
    """The `logits` that a script leaves in a fresh process, and what it prints."""
    out = script.parent / "logits.npy"
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(script), *map(str, tokens), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=script.parent,
        env={"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return np.load(out), done.stdout


def test_the_script_needs_nothing_of_ours(tmp_path: Path) -> None:
    arrays = random_arrays(WIDE)
    run = save_run(tmp_path / "run", WIDE, arrays, plan=Plan(fsdp=8))
    options = ExportOptions(max_shard_bytes=20_000, piece_bytes=4096)
    assert export_stablehlo(run, tmp_path / "out", dtype=BF16, options=options).complete
    logits, printed = stranger(tmp_path / "out" / "run.py", *PROMPT)
    expected = our_logits(WIDE, arrays, PROMPT, BF16)
    # bfloat16 rounds at 4e-3, and two layers of a dozen roundings each add up by chance: a few hundredths at most.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=5e-2 * scale)
    assert printed == f"most likely next token: {int(logits[0, -1].argmax())}\n"


def test_the_decoding_script_says_what_our_forward_pass_says(tmp_path: Path) -> None:
    arrays = random_arrays(WIDE)
    run = save_run(tmp_path / "run", WIDE, arrays)
    export_stablehlo(run, tmp_path / "out")
    logits, printed = stranger(tmp_path / "out" / "decode.py", *PROMPT)
    tokens = [int(word) for word in printed.split()]
    assert len(tokens) == 16
    expected = our_logits(WIDE, arrays, [*PROMPT, *tokens], FLOAT32)
    assert tokens == expected.argmax(axis=-1)[len(PROMPT) - 1 : -1].tolist()
    assert_close(logits[0], expected[-2])
    assert len(set(tokens)) > 3  # Not one token again and again.


def our_logits(
    model: ModelSection, arrays: dict[str, np.ndarray], tokens: list[int], dtype: np.dtype
) -> np.ndarray:
    """Of our own forward pass, with parameters of a dtype."""
    made = blueprint(model_builder(model))
    params = {path: jnp.asarray(array, dtype) for path, array in arrays.items()}
    logits = jax.jit(lambda p, t: bind(made, p)(t))(params, np.array([tokens], np.int32))
    return np.asarray(logits[0], np.float32)


def test_the_scripts_are_short_and_the_convention_is_written_down(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE))
    export_stablehlo(run, tmp_path / "out")
    script = (tmp_path / "out" / "run.py").read_text()
    assert len(script.splitlines()) <= 20
    imports = [line for line in script.splitlines() if line.startswith("import ")]
    assert imports == ["import json, pathlib, sys", "import jax, jax.export, numpy as np"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `tokens` | int32 | batch x sequence |" in card
    assert "| `key` | float32 | 2 x batch x length x 8 x 6 |" in card
    assert "| `layers/mlp/up` | float32 | 2 x 32 x 40 |" in card
    assert "attention forms all" in card


def test_another_length_is_another_export(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", WIDE, random_arrays(WIDE))
    half = replace(ExportOptions(piece_bytes=4096), num_processes=2)
    export_stablehlo(run, tmp_path / "out", sequence_length=16, options=half)
    with pytest.raises(UserError, match="another export that is not finished"):
        export_stablehlo(run, tmp_path / "out", sequence_length=32, options=half)
