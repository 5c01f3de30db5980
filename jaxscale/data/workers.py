"""Runs a function over many arguments, in this process or in several."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from jaxscale.errors import UserError

A = TypeVar("A")
R = TypeVar("R")


def run_all(
    function: Callable[[A], R], arguments: Sequence[A], workers: int
) -> Iterator[tuple[int, R]]:
    """(index, result) of each call, as they finish; in order and here if `workers` <= 1.

    Processes are spawned, so what they run must be importable and its arguments pickled. The first
    error cancels what has not begun.
    """
    if min(workers, len(arguments)) <= 1:
        yield from ((i, function(argument)) for i, argument in enumerate(arguments))
        return
    pool = ProcessPoolExecutor(
        min(workers, len(arguments)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        with _deaf_to_ctrl_c():
            futures = {pool.submit(function, argument): i for i, argument in enumerate(arguments)}
        yield from ((futures[future], _result(future)) for future in as_completed(futures))
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which reaches all of a terminal: this process ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(future: Future[R]) -> R:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory: a document is held in "
            "memory whole, once for each worker; use fewer workers"
        ) from error


def _start_worker() -> None:
    # The files are the parallelism; threads below them would only fight over the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A worker waits for work for ever; if the parent was killed it must not outlive it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
