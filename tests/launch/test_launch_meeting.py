"""Processes that meet over real sockets: here each is a thread."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launch_cases import free_port

from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.launch.agree import agree, flatten
from jaxscale.launch.door import meet
from jaxscale.launch.line import PeerLost
from jaxscale.launch.meeting import Meeting, in_turns
from jaxscale.launch.rendezvous import Together, check_shared
from jaxscale.launch.world import World

TIMEOUT = 2.0
# How much later than TIMEOUT a process may say what is missing, on a busy machine.
SLACK = 8.0


def world(process: int, count: int, port: int) -> World:
    return World(
        count, process, "127.0.0.1", port, "a test", tuple(f"node{i}" for i in range(count))
    )


def run(
    worlds: list[World], action: Callable[[Meeting], object], names: tuple[str, ...] = ()
) -> list[object]:
    """What `action` returns in each process, or the error that ended it."""

    def one(index: int) -> object:
        name = names[index] if names else "run"
        try:
            with meet(worlds[index], run=name, timeout=TIMEOUT) as meeting:
                return action(meeting)
        except (UserError, PeerLost) as error:
            return error

    with ThreadPoolExecutor(len(worlds)) as pool:
        return list(pool.map(one, range(len(worlds))))


def test_a_port_that_is_taken_is_named() -> None:
    """Maybe by a run that is just ending: starting again may help, so it is no mistake of the user's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (end,) = run([world(0, 2, port)], lambda meeting: meeting)
    assert isinstance(end, PeerLost)
    assert f"process 0 cannot listen on port {port} of " in str(end)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_processes_meet_over_ipv6() -> None:
    port = free_port()
    worlds = [World(2, i, "::1", port, "a test") for i in range(2)]
    assert (
        run(worlds, lambda meeting: meeting.exchange("number", meeting.process_id)) == [[0, 1]] * 2
    )


def test_everybody_hears_everybody() -> None:
    port = free_port()

    def twice(meeting: Meeting) -> list[object]:
        first = meeting.exchange("numbers", meeting.process_id * 10)
        return [first, meeting.exchange("words", str(meeting.process_id))]

    expected = [[0, 10, 20], ["0", "1", "2"]]
    assert run([world(i, 3, port) for i in range(3)], twice) == [expected] * 3


def test_the_port_is_free_again_while_the_lines_are_open() -> None:
    """JAX's service takes it over."""
    port, bound = free_port(), []

    def take_over(meeting: Meeting) -> None:
        meeting.exchange("arrival", None)
        if meeting.process_id == 0:
            with socket.create_server(("", port)) as server:
                bound.append(server.getsockname()[1])
        meeting.exchange("departure", None)

    assert run([world(i, 2, port) for i in range(2)], take_over) == [None, None]
    assert bound == [port]


def test_a_missing_peer_is_named_in_time() -> None:
    port, begin = free_port(), time.monotonic()
    ends = run([world(i, 4, port) for i in (0, 2)], lambda meeting: meeting)
    assert time.monotonic() - begin < TIMEOUT + SLACK
    for end in ends:
        assert isinstance(end, PeerLost)
        assert "2 of 4 processes did not come" in str(end)
        assert "process 1 on node1, process 3 on node3" in str(end)
        assert f"within {TIMEOUT:g} s" in str(end)


def test_without_process_0_the_others_say_where_they_looked() -> None:
    port, begin = free_port(), time.monotonic()
    (end,) = run([world(1, 2, port)], lambda meeting: meeting)
    assert time.monotonic() - begin < TIMEOUT + SLACK
    assert isinstance(end, PeerLost)
    assert f"could not reach process 0 at 127.0.0.1:{port}" in str(end)


def test_a_wrong_number_of_processes() -> None:
    port = free_port()
    ends = run([world(0, 2, port), world(1, 3, port)], lambda _: "met")
    for end in ends:
        assert isinstance(end, UserError)
        assert "is one of 3 processes, process 0 on" in str(end)


def test_two_processes_with_one_number() -> None:
    port = free_port()
    ends = run([world(i, 3, port) for i in (0, 1, 1)], lambda meeting: meeting)
    assert [type(end) for end in ends] == [UserError] * 3
    assert "two processes say that they are process 1" in str(ends[0])


def test_another_run_at_the_same_port() -> None:
    port = free_port()
    ends = run([world(i, 2, port) for i in range(2)], lambda _: "met", ("runs/a", "runs/b"))
    assert [type(end) for end in ends] == [UserError] * 2
    assert "came to run runs/b, but process 0" in str(ends[1])


def test_strangers_at_the_port_are_ignored() -> None:
    port = free_port()

    def knock() -> None:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"greeting": "x"}\n', b"[1]\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(words)

    def late(process: int) -> object:
        time.sleep(0.5 * process)
        if process == 1:
            knock()
        with meet(world(process, 2, port), run="run", timeout=10) as meeting:
            return meeting.exchange("number", process)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(late, range(2))) == [[0, 1]] * 2


def test_a_peer_that_dies_later_is_named() -> None:
    port = free_port()

    def die(meeting: Meeting) -> object:
        if meeting.process_id == 1:
            return meeting.close()
        return meeting.exchange("plan", 0, patient=True)

    first, _, third = run([world(i, 3, port) for i in range(3)], die)
    for end in (first, third):
        assert isinstance(end, PeerLost)
        assert "process 1 on" in str(end)
        assert "ended while the processes compared their plan" in str(end)


def test_a_peer_that_hangs_is_named_in_time() -> None:
    port, done = free_port(), threading.Event()

    def hang(meeting: Meeting) -> object:
        if meeting.process_id == 1:
            return done.wait(TIMEOUT + SLACK)
        try:
            return meeting.exchange("plan", 0)
        finally:
            done.set()

    begin = time.monotonic()
    first, _ = run([world(i, 2, port) for i in range(2)], hang)
    assert time.monotonic() - begin < TIMEOUT + SLACK
    assert isinstance(first, PeerLost)
    assert "process 1 on" in str(first)
    assert "has not answered for 2 s (waiting for its plan)" in str(first)


def test_one_process_s_mistake_is_everybody_s_message() -> None:
    port = free_port()

    def prepare(meeting: Meeting) -> None:
        def fail() -> None:
            raise UserError("no text in /data")

        in_turns(meeting, "data", fail if meeting.process_id == 0 else lambda: None)

    ends = run([world(i, 3, port) for i in range(3)], prepare)
    assert [(type(end), str(end)) for end in ends] == [(UserError, "no text in /data")] * 3


def test_turns_are_taken_by_machine() -> None:
    """Process 0 first; then one process of each other machine; then the rest."""
    port, order, lock = free_port(), list[int](), threading.Lock()
    hosts = ("a", "b", "a", "b")

    def take(meeting: Meeting) -> None:
        meeting.hosts = hosts  # All threads are on one machine.

        def work() -> None:
            time.sleep(0.1 * (4 - meeting.process_id))  # Who comes first would be done last.
            with lock:
                order.append(meeting.process_id)

        in_turns(meeting, "data", work)

    assert run([world(i, 4, port) for i in range(4)], take) == [None] * 4
    assert order == [0, 1, 3, 2]


def test_who_waits_hears_that_it_goes_on() -> None:
    """Process 0 works first, then process 1, the first of another machine; what is said once is heard by all others."""
    port, heard = free_port(), [0, 0, 0]
    hosts = ("a", "b", "b")

    def take(meeting: Meeting) -> list[object]:
        meeting.hosts = hosts  # All threads are on one machine.
        mine = meeting.process_id

        def count() -> None:
            heard[mine] += 1

        def work() -> None:
            for _ in range(100 if mine < 2 else 0):
                meeting.sign(period=60)

        meeting.alive = count
        in_turns(meeting, "data", work)
        return meeting.exchange("number", mine)

    assert run([world(i, 3, port) for i in range(3)], take) == [[0, 1, 2]] * 3
    # Process 1 says it to process 0, which passes it on to all: so process 1 hears both.
    assert heard == [1, 2, 2]


def test_differences_are_named_with_their_hosts() -> None:
    port = free_port()

    def compare(meeting: Meeting) -> None:
        meeting.hosts = ("node0", "node1", "node2")
        mine = {"training": {"steps": 7 if meeting.process_id == 2 else 5, "seed": 0}}
        agree(meeting, "configuration", flatten(mine), "Start them again.")

    ends = run([world(i, 3, port) for i in range(3)], compare)
    expected = (
        "the processes differ in their configuration: training.steps is 5 on node0, node1 (2 processes, first 0), "
        "7 on node2 (process 2). Start them again."
    )
    assert [str(end) for end in ends] == [expected] * 3


def test_other_plans_are_named() -> None:
    port = free_port()

    def compare(meeting: Meeting) -> None:
        Together(meeting).agree_on_plan(Plan(fsdp=2) if meeting.process_id else Plan(data=2))

    for end in run([world(i, 2, port) for i in range(2)], compare):
        assert isinstance(end, UserError)
        assert "the processes differ in their plan: data is 2 on" in str(end)
        assert "; fsdp is 1 on " in str(end)


def test_a_run_directory_that_is_not_shared_is_named(tmp_path: Path) -> None:
    """Process 2 has another one of the same name; the mark by which that is seen is gone afterwards."""
    port = free_port()

    def check(meeting: Meeting) -> None:
        own = tmp_path / ("local" if meeting.process_id == 2 else "shared")
        check_shared(meeting, own / "run", patience=0.3)

    ends = run([world(i, 3, port) for i in range(3)], check)
    assert [type(end) for end in ends] == [UserError] * 3
    assert "run of process 0 is not that of process 2 on " in str(ends[0])
    assert list((tmp_path / "shared/run").iterdir()) == []


def test_a_run_directory_that_is_shared_is_no_news(tmp_path: Path) -> None:
    port = free_port()
    ends = run(
        [world(i, 2, port) for i in range(2)], lambda meeting: check_shared(meeting, tmp_path)
    )
    assert ends == [None, None]


def test_a_run_directory_that_cannot_be_written_is_everybody_s_message(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "file"
    file.touch()
    ends = run(
        [world(i, 2, port) for i in range(2)], lambda meeting: check_shared(meeting, file / "run")
    )
    assert [type(end) for end in ends] == [UserError] * 2
    assert f"cannot write in the run directory {file}/run: Not a directory" in str(ends[1])
