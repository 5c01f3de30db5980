"""What is checked before the first step: devices, room, clocks; and who is told to be slow."""

import jax
import jax.numpy as jnp
import pytest

from jaxscale.config.loading import load_config
from jaxscale.errors import UserError
from jaxscale.training.health.self_test import BadDevice, check_devices
from jaxscale.training.health.start_checks import check_room, checkpoint_bytes, clock_messages
from jaxscale.training.health.stragglers import straggler_message, stragglers
from jaxscale.training.job import Job, make_job

HOSTS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    from run_cases import write_config

    folder = tmp_path_factory.mktemp("checks")
    return make_job(load_config(write_config(folder)), folder / "run")


def test_devices_of_one_kind_give_the_same_answer() -> None:
    check_devices()


def test_a_device_that_flips_one_bit_is_named() -> None:
    """The lowest bit of one element of one of eight devices."""

    def fault(device: jax.Device, answer: jax.Array) -> jax.Array:
        if device.id != 5:
            return answer
        words = jax.lax.bitcast_convert_type(answer, jnp.uint32)
        flipped = words.at[100, 200].set(words[100, 200] ^ 1)
        return jax.lax.bitcast_convert_type(flipped, jnp.float32)

    with pytest.raises(
        BadDevice, match=r"Different from most: device 5 of process 0 \([^;]*\)\. Take"
    ):
        check_devices(fault)


def test_where_half_the_devices_differ_all_are_named() -> None:
    with pytest.raises(BadDevice, match=r"device 0 .*; device 7 "):
        check_devices(lambda device, answer: answer + device.id // 4)


def test_a_checkpoint_is_parameters_and_two_moments(job: Job) -> None:
    """AdamW in fp32: three numbers of 4 bytes a parameter; and a few counters."""
    count = sum(spec.size for spec in job.model.description.values())
    assert 12 * count < checkpoint_bytes(job.specs) < 12 * count + 100


def test_a_disk_without_room_for_a_checkpoint_is_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operating system's answer is replaced: keep_last is 2, so three checkpoints are there at most."""
    size = checkpoint_bytes(job.specs)
    for free, warnings in ((3 * size, 0), (3 * size - 1, 1), (size, 1)):
        monkeypatch.setattr("shutil.disk_usage", lambda _path, free=free: _Usage(free))
        assert len(check_room(job)) == warnings
    monkeypatch.setattr("shutil.disk_usage", lambda _path: _Usage(size - 1))
    with pytest.raises(UserError, match=r"a checkpoint of this run takes 4.*free some space"):
        check_room(job)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_clock_that_is_off_is_named() -> None:
    assert not clock_messages([1000.0, 1001.5, 1000.2, 1000.1], HOSTS)
    (message,) = clock_messages([1000.0, 1000.1, 993.0, 1000.2], HOSTS)
    assert message.startswith("the clock of process 2 (c) is 7.0 s behind")


def test_a_host_is_slow_by_its_own_time_and_if_it_costs_something() -> None:
    """Own median 0.1 s: 0.16 is over 1.5 times that, 0.14 is not; of a step of 2 s, 0.06 more is under 5 %."""
    assert stragglers([0.1, 0.1, 0.16, 0.1], 1.0) == [2]
    assert stragglers([0.1, 0.1, 0.14, 0.1], 1.0) == []
    assert stragglers([0.1, 0.1, 0.16, 0.1], 2.0) == []
    message = straggler_message([0.1, 0.1, 0.16, 0.1], 1.0, HOSTS)
    assert message is not None
    assert "process 2 (c) 0.16 s" in message
    assert straggler_message([0.1] * 4, 1.0, HOSTS) is None
