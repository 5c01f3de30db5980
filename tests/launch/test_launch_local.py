"""`jaxscale launch local`: what it would run, and the real thing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_cases import ROOT, call, free_port, start_command, write_config
from run_cases import own_model

from jaxscale.errors import UserError
from jaxscale.launch.local import Local, choose, local_members
from jaxscale.launch.run import progress_of
from jaxscale.launch.train_command import TrainCommand

WEIRD = "training.sample_prompts=['a b; echo $HOME']"


def test_dry_run_prints_what_a_shell_could_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run = tmp_path / "a run"
    common = ("-n", "2", "--devices-per-process", "3", "--port", "7777", "--dry-run")
    answer = call("launch", "local", config, WEIRD, "--run-dir", run, *common)
    assert answer.status == 0
    train = ["train", "--run-dir", str(run), "--", str(config), WEIRD]
    for process, line in enumerate(answer.out.splitlines()):
        assert shlex.split(line) == [
            "JAXSCALE_COORDINATOR=127.0.0.1:7777",
            "JAXSCALE_GRACE_SECONDS=120",
            "JAXSCALE_NUM_PROCESSES=2",
            f"JAXSCALE_PROCESS_ID={process}",
            "PYTHONUNBUFFERED=1",
            "JAX_PLATFORMS=cpu",
            "JAX_NUM_CPU_DEVICES=3",
            sys.executable,
            "-m",
            "jaxscale",
            *train,
        ]
    assert len(answer.out.splitlines()) == 2
    assert not run.exists()


def on(
    count: int | None, devices: int | None, *, gpus: int = 0, tpu: bool = False, **variables: str
) -> Local:
    return choose(count, devices, gpus=gpus, tpu=tpu, environment=variables)


def test_a_process_for_each_gpu() -> None:
    assert on(None, None, gpus=4) == Local(4, None, "gpu")
    assert on(2, None, gpus=4) == Local(2, None, "gpu")
    assert on(4, 2, gpus=4) == Local(4, 2, "cpu")
    assert on(4, None, gpus=4, JAX_PLATFORMS="cpu") == Local(4, 1, "cpu")
    assert on(None, None) == Local(1, 1, "cpu")
    with pytest.raises(UserError, match="-n 5 with 4 GPUs"):
        on(5, None, gpus=4)


def test_a_tpu_is_never_left_for_the_cpu_in_silence() -> None:
    assert on(None, None, tpu=True) == Local(1, None, "tpu")
    assert on(4, 2, tpu=True) == Local(4, 2, "cpu")
    with pytest.raises(UserError, match="-n 4 on a TPU: one process has all its chips"):
        on(4, None, tpu=True)


def test_what_a_process_is_told_of_its_devices(tmp_path: Path) -> None:
    train = TrainCommand(("jaxscale",), "c.yaml", (), "run")

    def variables(local: Local) -> dict[str, str]:
        member = local_members(local, train, tmp_path, port=lambda: 1, grace=1)(1)[-1]
        return {
            name: value
            for name, value in member.environment.items()
            if "JAX_" in name or "DEVICES" in name
        }

    assert variables(Local(2, None, "gpu")) == {"JAXSCALE_LOCAL_DEVICES": "1"}
    assert variables(Local(1, None, "tpu")) == {}
    assert variables(Local(2, 3, "cpu")) == {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-n", "0"), "-n 0: 1 to 1024 processes"),
        (("-n", "2", "--devices-per-process", "0"), "--devices-per-process 0: at least 1"),
        (("-n", "2", "training.step=3"), "training.step"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    run = tmp_path / "run"
    answer = call("launch", "local", write_config(tmp_path), "--run-dir", run, *arguments)
    assert answer.status == 2
    assert words in answer.err
    assert not run.exists()


def test_a_launcher_does_without_jax(tmp_path: Path) -> None:
    """It lives beside processes that want the memory, and starts at once."""
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "import jaxscale.launch.run, jaxscale.launch.tpu_vm, jaxscale.launch.k8s, jaxscale.cli.processes; "
        "from jaxscale.cli.main import run; run()"
    )
    words = ("launch", "local", write_config(tmp_path), "-n", "2", "--dry-run")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "yaml" in loaded
    assert loaded.isdisjoint(("jax", "flax", "orbax", "tensorstore", "grain"))


def test_progress_is_read_from_the_run(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == (0, 0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1}\n{"step": 8, "lo')
    assert progress_of(tmp_path) == (0, 7)
    (tmp_path / "checkpoints/5").mkdir(parents=True)
    (tmp_path / "checkpoints/9.0.saving").mkdir()
    assert progress_of(tmp_path) == (5, 7)


def environment(process: int, count: int, port: int) -> dict[str, str]:
    return {
        "JAXSCALE_COORDINATOR": f"127.0.0.1:{port}",
        "JAXSCALE_NUM_PROCESSES": str(count),
        "JAXSCALE_PROCESS_ID": str(process),
    }


def test_processes_that_differ_end_with_the_difference(tmp_path: Path) -> None:
    """Before JAX is imported: the command line of one of two processes has another learning rate."""
    config, port = write_config(tmp_path), free_port()
    started = [
        start_command(
            "train", config, f"training.optimizer.learning_rate={rate}", "--run-dir", tmp_path / "run",
            environment=environment(process, 2, port),
        )
        for process, rate in enumerate((0.1, 0.2))
    ]  # fmt: skip
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert err.startswith("error: the processes differ in their configuration: ")
        assert "training.optimizer.learning_rate is 0.1 on " in err
        assert "0.2 on " in err
        assert len(err.splitlines()) == 1


def test_processes_with_other_versions_end_with_both(tmp_path: Path) -> None:
    """The second one finds the papers of another JAX first."""
    config, port = write_config(tmp_path), free_port()
    papers = tmp_path / "other/jax-9.9.9.dist-info"
    papers.mkdir(parents=True)
    (papers / "METADATA").write_text("Metadata-Version: 2.1\nName: jax\nVersion: 9.9.9\n")
    paths = (str(ROOT), f"{papers.parent}{os.pathsep}{ROOT}")
    started = [
        start_command(
            "train", config, "--run-dir", tmp_path / "run",
            environment={**environment(process, 2, port), "PYTHONPATH": path},
        )
        for process, path in enumerate(paths)
    ]  # fmt: skip
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert err.startswith("error: the processes differ in their versions: jax is ")
        assert '"9.9.9" on ' in err
        assert len(err.splitlines()) == 1


def test_flags_say_who_a_process_is_and_how_long_it_waits(tmp_path: Path) -> None:
    flags = (
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--num-processes",
        "2",
        "--process-id",
        "0",
    )
    process = start_command(
        "train",
        write_config(tmp_path),
        "--run-dir",
        tmp_path / "run",
        *flags,
        "--join-timeout",
        "1",
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("error: 1 of 2 processes did not come to ")
    assert "within 1 s: process 1;" in err


def records(run: Path, key: str) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


MESH = (
    "plan.data=2",
    "plan.fsdp=4",
    "training.steps=20",
    "data.eval_fraction=0",
)


def launch(config: Path, run: Path, processes: int, devices: int, *overrides: str) -> list[str]:
    return [
        "launch", "local", "-n", str(processes), "--devices-per-process", str(devices),
        str(config), *MESH, *overrides, "--run-dir", str(run),
    ]  # fmt: skip


def kill_one(launcher: subprocess.Popen[str], run: Path, step: int) -> None:
    """SIGKILL to a process of the launcher's, once the run has the checkpoint of a step."""
    until = time.monotonic() + 200
    while progress_of(run)[0] < step and time.monotonic() < until and launcher.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


@pytest.mark.slow
def test_four_processes_train_as_one_does_although_it_is_killed_on_the_way(tmp_path: Path) -> None:
    """Four processes of two devices prepare the text once and train bitwise as one process of eight does, which is
    killed behind the checkpoint of step 2, and which the launcher starts again.

    Both under the launcher: their collectives are Gloo's, which adds in the same order wherever the devices are.
    """
    config, runs = own_model(tmp_path, write_config(tmp_path)), {}
    for name, processes in (("four", 4), ("one", 1)):
        runs[name] = tmp_path / name
        started = start_command(*launch(config, runs[name], processes, 8 // processes))
        if name == "one":
            kill_one(started, runs[name], step=2)
        out, err = started.communicate(timeout=300)
        assert started.returncode == 0, (out, err)
        if name == "one":
            assert "restart 1 of 10 from step" in out
            assert "resuming behind step" in out
    for key in ("loss", "grad_norm"):
        four, one = (records(runs[name], key) for name in ("four", "one"))
        assert len(four) == 20
        assert four == one


@pytest.mark.parametrize("words", [("local",), ("slurm",), ("ssh", "--hosts", "{hosts}")])
def test_a_run_directory_in_a_store_is_refused_before_anything_is_started(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "hosts").write_text("node1\n")
    given = [word.format(hosts=tmp_path / "hosts") for word in words]
    answer = call("launch", *given, write_config(tmp_path), "--run-dir", "s3://b/run", "--dry-run")
    assert answer.status == 2, answer
    assert "checkpoint.directory=s3://b/run" in answer.err
