"""A process that meets others and watches them. Arguments: process, how many, address, port, lost_seconds, its role."""

import os
import signal
import sys
import time

from jaxscale.errors import UserError
from jaxscale.launch.door import meet
from jaxscale.launch.world import World


def act(what: str) -> None:
    print("watching", flush=True)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "fail":
        raise RuntimeError("no luck\nat all")
    if what == "mistake":
        raise UserError("write 3, not 4")
    if what == "mistake late":
        time.sleep(0.1)
        raise UserError("saving failed: free some space")
    if what.startswith("stay"):
        time.sleep(float(what.removeprefix("stay")))
    if what.startswith("fail late"):
        time.sleep(float(what.removeprefix("fail late")))
        raise RuntimeError("the collective failed")


def main(process: int, count: int, address: str, port: int, lost: float, what: str) -> None:
    world = World(count, process, address, port, "a test")
    with meet(world, run="run", timeout=30) as meeting:
        meeting.exchange("arrival", None)
        meeting.keep_watch(lost)
        act(what)


number, total, host, door, silence, role = sys.argv[1:]
main(int(number), int(total), host, int(door), float(silence), role)
