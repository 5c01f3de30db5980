"""Programs compiled by one process are read by the next, and the cache is where it was asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxscale.training.compile_cache import FOLDER, cache_directory, compile_cache

# Compiles a program inside the cache and one behind it, and says how often JAX looked and what it found.
SCRIPT = """
import sys
from collections import Counter
from pathlib import Path
import jax
import jax.numpy as jnp
from jaxscale.training.compile_cache import compile_cache

happened = Counter()
jax.monitoring.register_event_listener(lambda name, **_: happened.update([name.rsplit("/", 1)[1]]))
x = jnp.arange(4.0)  # Compiled before the cache is there: JAX must not remember that there was none.
jax.block_until_ready(x)
with compile_cache(Path(sys.argv[1])) as where:
    y = float(jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)))(x))
inside = Counter(happened)
jax.block_until_ready(jax.jit(lambda x: x * 3)(x))
looked = [counts["cache_hits"] + counts["cache_misses"] for counts in (inside, happened)]
print(y.hex(), inside["cache_hits"], looked[0] > 0, looked[0] == looked[1], where)
"""


def run(directory: Path, **environment: str) -> list[str]:
    shown = {
        "PATH": "",
        "PYTHONPATH": ":".join(sys.path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, directory],
        capture_output=True,
        text=True,
        check=True,
        env=shown | environment,
    )
    return done.stdout.split()


def test_the_next_process_reads_what_this_one_compiled(tmp_path: Path) -> None:
    first = run(tmp_path / "runs" / "first")
    second = run(tmp_path / "runs" / "second")  # Another run of the same directory.
    assert first[2:] == ["True", "True", str(cache_directory(tmp_path / "runs" / "x"))]
    assert int(first[1]) == 0
    assert int(second[1]) >= 1
    assert second[0] == first[0]  # Bitwise.
    assert (tmp_path / "runs" / FOLDER).is_dir()


@pytest.mark.parametrize("elsewhere", ["", "mine"])
def test_a_variable_of_jax_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", elsewhere)
    with compile_cache(tmp_path / "run") as where:
        assert where == (Path("mine") if elsewhere else None)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_files_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    with compile_cache(tmp_path / "file" / "run") as where:
        assert where is None
