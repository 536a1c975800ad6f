"""Calls on threads that end with their test, and signals that arrive during a call."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def run_at_once(work: Callable[[int], None], count: int) -> None:
    """Calls work(i) on ``count`` threads; raises the first of their errors."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def calling(work: Callable[[], None], count: int) -> Iterator[None]:
    """Calls ``work`` on ``count`` threads repeatedly until the block ends, also by an exception.

    Each thread has finished one call before the block begins. At the end the first of their errors
    is raised.
    """
    done = threading.Event()
    ready = [threading.Event() for _ in range(count)]

    def repeat(index: int) -> None:
        try:
            while not done.is_set():
                work()
                ready[index].set()
        finally:
            ready[index].set()  # otherwise the block would wait for a thread that failed

    errors: list[BaseException] = []

    def run() -> None:
        try:
            run_at_once(repeat, count)
        except BaseException as error:
            errors.append(error)

    callers = threading.Thread(target=run)
    callers.start()
    try:
        for event in ready:
            event.wait()
        yield
    finally:
        done.set()
        callers.join()
    if errors:
        raise errors[0]


def interrupt_within(call: Callable[[int], Any], attempts: int = 40) -> None:
    """Sends SIGINT until one call has handled three of them; the third is a KeyboardInterrupt.

    One may be handled just before the native code starts, and one just after it. The third can only
    be handled while it runs. So it does not matter when signals arrive or how long the call takes.

    Args:
        call: Called repeatedly with the number of the attempt. Its work may grow with that number,
            for machines on which it is too fast to check for signals three times.
        attempts: The test fails after so many calls that ended before the third signal.
    """
    handled = 0
    acknowledged: queue.SimpleQueue[None] = queue.SimpleQueue()  # put() is reentrant
    done = threading.Event()

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        acknowledged.put(None)
        if handled == 3:
            raise KeyboardInterrupt

    def send() -> None:
        while not done.is_set():
            signal.raise_signal(signal.SIGINT)
            acknowledged.get()

    before = signal.signal(signal.SIGINT, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for attempt in range(attempts):
            handled = 0
            call(attempt)
        pytest.fail(f"none of {attempts} calls has looked for signals while it ran")
    finally:
        handled = 4  # further signals raise nothing
        done.set()
        acknowledged.put(None)
        sender.join()
        signal.signal(signal.SIGINT, before)
