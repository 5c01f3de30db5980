"""Real processes under the supervisor: small programs in place of training, so that each test takes a second."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from launch_cases import ROOT, python

from jaxscale.launch.members import Ended, Member
from jaxscale.launch.screen import Screen
from jaxscale.launch.supervise import Limits, Notices, run_attempt

FOREVER = "import time; time.sleep(600)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(600)
"""
# Saves and ends as a preempted run does.
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print('ready', flush=True)
time.sleep(600)
"""
LIMITS = Limits(grace=2.0, peer_grace=1.0)
# A busy machine may take so long to start, see and end a few processes.
SLACK = 60.0


def supervise(
    members: Sequence[Member], notice: Notices | None = None, limits: Limits = LIMITS
) -> list[Ended]:
    return run_attempt(
        members, attempt=1, screen=Screen(6), limits=limits, notice=notice or Notices()
    )


def when_ready(folder: Path, labels: Sequence[str], action: Callable[[], None]) -> None:
    """`action` in a thread, once each member has printed `ready`."""

    def wait() -> None:
        until = time.monotonic() + SLACK
        while time.monotonic() < until and not all(
            _is_ready(folder / f"{one}.log") for one in labels
        ):
            time.sleep(0.02)
        action()

    threading.Thread(target=wait, daemon=True).start()


def _is_ready(log: Path) -> bool:
    return log.is_file() and "ready" in log.read_text()


def test_lines_have_their_process_and_their_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('out', sys.argv[1]); print('err', sys.argv[1], file=sys.stderr)"
    members = [python(str(i), program, tmp_path, str(i)) for i in range(2)]
    assert supervise(members) == [Ended("0", 0), Ended("1", 0)]
    shown = capsys.readouterr().out.splitlines()
    assert sorted(shown) == ["     0 | err 0", "     0 | out 0", "     1 | err 1", "     1 | out 1"]
    header, *lines = (tmp_path / "1.log").read_text().splitlines()
    assert header.startswith("--- attempt 1, ")
    assert sorted(lines) == ["err 1", "out 1"]


def test_statuses_and_messages_come_back(tmp_path: Path) -> None:
    program = (
        "import sys; sys.stderr.write('warming up\\nerror: no text\\nin /data\\n'); sys.exit(2)"
    )
    (ended,) = supervise([python("0", program, tmp_path)])
    assert ended == Ended("0", 2, message="no text\nin /data")


def test_one_that_fails_takes_the_others_with_it_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stubborn one ignores SIGTERM and is killed; waiting for either would take ten minutes."""
    die = "import os, signal, time; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    programs = (("0", FOREVER), ("1", die), ("2", STUBBORN))
    begin = time.monotonic()
    ended = supervise([python(label, program, tmp_path) for label, program in programs])
    assert time.monotonic() - begin < 1 + LIMITS.peer_grace + SLACK
    assert ended == [Ended("0", -15, stopped=True), Ended("1", -9), Ended("2", -9, stopped=True)]
    shown = capsys.readouterr().out
    assert "launch | process 1 was killed by SIGKILL; ending the other 2 within 1 s" in shown
    assert shown.count("launch | 2: did not end in time: killed") == 1


def test_a_process_elsewhere_is_killed_there_at_once(tmp_path: Path) -> None:
    """Not only the connection to it; by itself it would have ten minutes left, and the next attempt would meet it."""
    program = "import os; print(os.getpid()); " + STUBBORN.strip().replace("\n", "; ")
    attended = (sys.executable, "-m", "jaxscale.launch.attend", "--grace", "600", "--")
    argv = (*attended, sys.executable, "-uc", program)
    environment = {"PYTHONPATH": str(ROOT)}
    remote = Member("0", argv, tmp_path / "0.log", environment, remote=True)
    wait_and_die = (
        f"import pathlib, sys, time; log = pathlib.Path({str(tmp_path / '0.log')!r})\n"
        "while not (log.exists() and 'ready' in log.read_text()): time.sleep(0.02)\n"
        "sys.exit(1)"
    )
    begin = time.monotonic()
    ended = supervise([remote, python("1", wait_and_die, tmp_path)])
    assert time.monotonic() - begin < 2 * SLACK
    assert ended == [Ended("0", 128 + signal.SIGKILL, stopped=True), Ended("1", 1)]
    assert not _alive(int((tmp_path / "0.log").read_text().splitlines()[1]))


def test_one_that_ends_well_leaves_the_others_their_time(tmp_path: Path) -> None:
    soon = "import time; time.sleep(0.5)"
    ended = supervise([python("0", "", tmp_path), python("1", soon, tmp_path)])
    assert ended == [Ended("0", 0), Ended("1", 0)]


def test_one_that_hangs_behind_the_end_is_killed(tmp_path: Path) -> None:
    """Process 1 has saved and ended; process 0 hangs, and the grace time is over."""
    leave = "import sys; sys.exit(75)"
    limits = Limits(grace=0.5, peer_grace=60)
    ended = supervise([python("0", FOREVER, tmp_path), python("1", leave, tmp_path)], limits=limits)
    assert ended == [Ended("0", -9, stopped=True), Ended("1", 75)]


def test_a_signal_is_passed_on_to_all(tmp_path: Path) -> None:
    notice = Notices()
    when_ready(tmp_path, "01", lambda: notice.received.append(signal.SIGTERM))
    ended = supervise([python(label, SAVES, tmp_path) for label in "01"], notice)
    assert ended == [Ended(label, 75, stopped=True) for label in "01"]


def test_a_second_signal_kills(tmp_path: Path) -> None:
    notice = Notices()
    twice = [signal.SIGINT, signal.SIGINT]
    when_ready(tmp_path, "0", lambda: notice.received.extend(twice))
    begin = time.monotonic()
    ended = supervise([python("0", STUBBORN, tmp_path)], notice, Limits(grace=600, peer_grace=600))
    assert time.monotonic() - begin < SLACK
    assert ended == [Ended("0", -9, stopped=True)]


def test_what_a_process_leaves_behind_is_ended(tmp_path: Path) -> None:
    """A data worker that outlives its parent holds its output open."""
    program = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(c.pid)"
    supervise([python("0", program, tmp_path, FOREVER)])
    pid = int((tmp_path / "0.log").read_text().splitlines()[-1])
    until = time.monotonic() + SLACK
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """A zombie that nobody has collected yet is not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_program_that_is_not_there_ends_the_rest(tmp_path: Path) -> None:
    missing = Member("1", ("/nowhere/jaxscale",), tmp_path / "1.log")
    with pytest.raises(FileNotFoundError):
        supervise([python("0", FOREVER, tmp_path), missing])


LAUNCHER = """
import sys
from pathlib import Path
from jaxscale.launch.members import Member
from jaxscale.launch.restarts import Policy
from jaxscale.launch.run import keep_running
from jaxscale.launch.supervise import Limits
folder, program = Path(sys.argv[1]), sys.argv[2]
make = lambda n: [Member(str(i), (sys.executable, "-c", program), folder / f"{i}.log") for i in range(2)]
sys.exit(keep_running(make, lambda: (0, 0), policy=Policy(2, 2, 0.1), limits=Limits(5, 1), label_width=1))
"""


def start_launcher(folder: Path, program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder), program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_launcher_end_a_run_with_its_status(
    tmp_path: Path, number: signal.Signals
) -> None:
    """All that it catches reach the processes as SIGTERM; they save and end with 75, and nothing is started anew."""
    launcher = start_launcher(tmp_path, SAVES)
    when_ready(tmp_path, "01", lambda: launcher.send_signal(number))
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, (out, err)
    assert f"{number.name}: all save and end, or are killed in 5 s" in out
    assert "--- attempt 2" not in (tmp_path / "0.log").read_text()


def test_a_user_s_mistake_is_one_message(tmp_path: Path) -> None:
    program = "import sys; sys.stderr.write('error: no text in /data\\n'); sys.exit(2)"
    launcher = start_launcher(tmp_path, program)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert err == "error: no text in /data\n"
    assert "no text" not in out


def test_a_crash_loop_stops_with_the_reason(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, "raise RuntimeError('broken')")
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert "restart 1 of 2 from step 0" in out
    assert "crash loop: 2 attempts failed at step 0" in out
    assert "RuntimeError: broken" in out
    assert err == ""
    assert (tmp_path / "0.log").read_text().count("--- attempt") == 2


def test_a_launcher_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    program = (
        "import os, time; from jaxscale.launch.orphans import end_with_launcher; "
        "end_with_launcher(os.environ); print(os.getpid(), 'ready', flush=True); time.sleep(600)"
    )
    launcher = start_launcher(tmp_path, program)
    until = time.monotonic() + SLACK
    while time.monotonic() < until and not all(_is_ready(tmp_path / f"{i}.log") for i in "01"):
        time.sleep(0.02)
    launcher.kill()
    launcher.communicate(timeout=120)
    pids = [int((tmp_path / f"{i}.log").read_text().splitlines()[-1].split()[0]) for i in "01"]
    while any(map(_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(_alive, pids))
