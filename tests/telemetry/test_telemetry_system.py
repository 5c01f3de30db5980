"""Memory, environment and profiles of the machine that runs the tests."""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.telemetry.environment import describe_environment
from jaxscale.telemetry.memory import host_memory_bytes, memory_metrics
from jaxscale.telemetry.profiler import StepProfiler


def test_host_memory_grows_by_what_is_used_not_by_what_is_reserved() -> None:
    block = np.empty(64 * 2**20, np.uint8)
    before = host_memory_bytes()
    block.fill(1)
    grown = host_memory_bytes() - before
    # The allocator may reuse or add some pages; other threads are idle. An eighth is ample for both.
    assert 56 * 2**20 < grown < 72 * 2**20
    assert block[-1] == 1


def test_devices_that_do_not_count_give_no_device_memory() -> None:
    assert set(memory_metrics(jax.local_devices())) == {"host_memory_bytes"}


class CountingDevice:
    """A device with statistics, which CPUs lack: the keys are those of XLA's allocator."""

    def __init__(self, used: int, peak: int) -> None:
        self.used, self.peak = used, peak

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_in_use": self.used, "peak_bytes_in_use": self.peak, "bytes_limit": 1000}


def test_the_fullest_device_counts() -> None:
    metrics = memory_metrics([CountingDevice(10, 90), CountingDevice(20, 30)])
    assert metrics["device_memory_bytes"] == 20
    assert metrics["device_memory_peak_bytes"] == 90


def test_environment_is_plain_json_and_names_the_versions_in_use() -> None:
    environment = describe_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["packages"]["jax"] == jax.__version__
    assert sum(environment["devices"].values()) == jax.device_count()


def test_commit_is_that_of_the_working_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment()["git_commit"] is None
    assert describe_environment()["git_has_changes"] is None
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    (tmp_path / "file").write_text("one")
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], check=True)
    assert len(describe_environment()["git_commit"]) == 40
    assert describe_environment()["git_has_changes"] is False
    (tmp_path / "file").write_text("two")
    assert describe_environment()["git_has_changes"] is True


def run_steps(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        profiler.before(step)
        profiler.after(step, jnp.ones(8) * step)


def test_only_the_chosen_steps_are_traced(tmp_path) -> None:
    profiler = StepProfiler(start=3, steps=2, directory=tmp_path / "profile")
    run_steps(profiler, range(1, 3))
    assert not (tmp_path / "profile").exists()
    run_steps(profiler, range(3, 10))
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_resuming_inside_or_after_the_window_traces_nothing(tmp_path) -> None:
    profiler = StepProfiler(start=3, steps=4, directory=tmp_path / "profile")
    run_steps(profiler, range(5, 9))
    profiler.close()
    assert not (tmp_path / "profile").exists()


def test_a_run_that_stops_inside_the_window_still_leaves_a_trace(tmp_path) -> None:
    profiler = StepProfiler(start=1, steps=100, directory=tmp_path / "profile")
    run_steps(profiler, range(1, 3))
    profiler.close()
    profiler.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_steps_no_trace(tmp_path) -> None:
    profiler = StepProfiler(start=1, steps=0, directory=tmp_path / "profile")
    run_steps(profiler, range(1, 4))
    assert not (tmp_path / "profile").exists()
