"""Callers in threads of their own, which end with the test, and signals that come within a call."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def run_at_once(work: Callable[[int], None], count: int) -> None:
    """Calls work(i) on a thread each; raises what one of them raises."""
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
    """Calls ``work`` on threads, again and again until the end of the block, however it ends.

    Each has called once before the block begins. What one of them raises is raised at the end.
    """
    done = threading.Event()
    ready = [threading.Event() for _ in range(count)]

    def repeat(index: int) -> None:
        try:
            while not done.is_set():
                work()
                ready[index].set()
        finally:
            ready[index].set()  # so that nobody waits for a thread that has failed

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
    """Sends SIGINT until three in one call have been handled; the third is a KeyboardInterrupt.

    One may be handled just before the native code is entered, and one after it. The third can only
    be while it runs, so that it does not matter when signals come, nor how long the call takes.

    Args:
        call: What is called, again and again, with the number of the attempt; the work may grow
            with it, where a machine is too fast for signals to be looked for three times.
        attempts: After so many calls, each over before the third signal, the test fails.
    """
    handled = 0
    acknowledged: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be put to while it is in use
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
        handled = 4  # no more of them is an error
        done.set()
        acknowledged.put(None)
        sender.join()
        signal.signal(signal.SIGINT, before)
