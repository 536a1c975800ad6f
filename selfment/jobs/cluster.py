"""Work in many processes, on a Ray cluster or on a Ray of this machine.

Ray starts the workers and starts those again that were killed. What a worker computes, and how that
is continued after a kill, is up to the function that it calls.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from tqdm import tqdm

from ..core.options import require
from ..util.extras import load_extra

#: How often a worker is started again for a unit of which it has done nothing more.
RESTARTS = 3

_OBJECT_STORE = 128 << 20  # bytes of a local Ray: it stores little but lists of files
_START_PATIENCE = 60.0  # seconds after which a missing worker is mentioned

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RayOptions:
    """Which Ray to use, and the resources of each worker.

    Raises ``ValueError`` for a value against its rule.
    """

    workers: int = 2
    threads: int = 1  #: CPU threads of each worker
    gpus: float = 0.0  #: GPUs of each worker, such as 0.5
    #: "auto" or "ray://..."; None starts a Ray on this machine, which ends with the run
    address: str | None = None

    def __post_init__(self) -> None:
        require("workers", self.workers, "an integer >= 1", self.workers >= 1)
        require("threads", self.threads, "an integer >= 1", self.threads >= 1)
        rule = "a share of one GPU, or a whole number of GPUs"
        is_share = 0 <= self.gpus < 1 or (self.gpus >= 1 and float(self.gpus).is_integer())
        require("gpus", self.gpus, rule, is_share)


@dataclass(frozen=True)
class Remains:
    """Describes what remains of a unit whose worker was killed."""

    done: object  #: differs from an earlier value if anything has been done meanwhile
    suspects: str  #: what may have killed the worker, as part of a sentence


def run_units(
    factory: Callable[[], Callable[[Unit], Result]],
    units: Iterable[Unit],
    options: RayOptions,
    inspect: Callable[[Unit], Remains],
) -> Generator[Result, None, None]:
    """Yields the result of each unit as soon as a worker has it.

    Each worker calls ``factory`` once, and the function that it returns for one unit after the
    other. Lines that the function writes to ``sys.stderr`` appear on that of this process. If a
    worker is killed, Ray starts it again, and the function is called again for the same unit, so it
    must continue where it stopped; lines that it repeats are not printed again. A unit for which
    workers are killed again and again without doing anything is given up, and the others go on.

    If the iteration is interrupted or closed, or a function raises, the functions that still run
    are interrupted as by Ctrl-C, and their ends are awaited. If this process is killed, Ray kills
    the workers.

    Args:
        factory: Can be pickled. It may load a model.
        units: Can be pickled, such as names; no two workers get the same.
        options: See :class:`RayOptions`. A Ray that this process is connected to is used as it is.
        inspect: Called in this process with the unit of a worker that was killed.

    Raises:
        ImportError: Ray is missing.
        ConnectionError: There is no Ray at the address.
        ChildProcessError: Workers cannot be started, or, at the end, units were given up.
        Exception: Whatever the factory or the function raises.
    """
    ray = load_extra("ray", "Ray", "ray", "the engine 'ray'")
    with _connected(ray, options):
        pool = _Pool(ray, factory, units, options, inspect)
        try:
            yield from pool.results()
        finally:
            pool.stop()


@contextmanager
def _connected(ray: Any, options: RayOptions) -> Iterator[None]:
    """Connects to the Ray of the options, or starts one, unless there is a connection."""
    if ray.is_initialized():
        yield
        return
    where: dict[str, Any] = {"address": options.address}
    if options.address is None:
        cpus = options.workers * options.threads
        where = {"address": "local", "num_cpus": cpus, "object_store_memory": _OBJECT_STORE}
        where["include_dashboard"] = False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on versions of Ray to come
            try:
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError as error:  # its message may have the traceback of a server
                why = str(error).strip().splitlines() or [type(error).__name__]
                raise ConnectionError(
                    f"`address` must be that of a Ray that answers: got {options.address!r} "
                    f"({why[0].rstrip(':')}{': ' + why[-1] if len(why) > 1 else ''})"
                ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process at once
        if options.address is None:
            there = ray.cluster_resources().get("GPU", 0)
            rule = f"at most {there:g} for all workers together on this machine"
            require("gpus", options.gpus, rule, options.workers * options.gpus <= there)
        yield
    finally:
        ray.shutdown()


class Worker:
    """An actor of Ray: a process that does units.

    Ray calls its methods in threads, so that a unit can be watched and interrupted.
    """

    def __init__(self) -> None:
        self._output = _Output()
        self._lock = threading.Lock()
        self._thread: int | None = None  # in which a unit is being done
        self._is_stopped = False
        self._function: Callable[[Any], Any] | None = None

    def prepare(
        self, factory: Callable[[], Callable[[Any], Any]], threads: int, folder: str
    ) -> None:
        """Sets what :meth:`run` needs; ``folder``: the working folder, as in the main process."""
        self._factory = factory
        self._threads = threads
        os.chdir(folder)

    def run(self, unit: Any) -> tuple[Any, Sequence[str]]:
        """Returns the result of a unit, None after an interrupt, and the last lines of output."""
        result = None
        # The interrupt is raised before the last block is left.
        with suppress(KeyboardInterrupt), redirect_stderr(self._output), self._interruptible():
            torch.set_num_threads(self._threads)
            if self._function is None:
                self._function = self._factory()
            result = self._function(unit)
        return result, self._output.take()

    def lines(self) -> Sequence[str]:
        """Waits for output, but for a second at most; returns the new lines."""
        return self._output.take(1.0)

    def stop(self) -> None:
        """Interrupts the unit that is being done."""
        with self._lock:
            self._is_stopped = True
            if self._thread is not None:
                number, error = ctypes.c_ulong(self._thread), ctypes.py_object(KeyboardInterrupt)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(number, error)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        with self._lock:
            if self._is_stopped:
                raise KeyboardInterrupt
            self._thread = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._thread = None


class _Output(io.TextIOBase):
    """A text stream whose lines another thread takes."""

    def __init__(self) -> None:
        self._text = ""
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            self._text += text
            self._changed.notify_all()
        return len(text)

    def take(self, seconds: float | None = None) -> Sequence[str]:
        """Returns the complete lines, for which it waits; without ``seconds`` all text at once."""
        with self._changed:
            if seconds is not None:
                self._changed.wait_for(lambda: "\n" in self._text, seconds)
                whole, end, self._text = self._text.rpartition("\n")
                return (whole + end).splitlines()
            text, self._text = self._text, ""
            return text.splitlines()


@dataclass(eq=False)
class _Member(Generic[Unit]):
    """A worker, as the main process sees it."""

    actor: Any
    unit: Unit | None = None  #: what it works on
    run: Any = None  #: the reference to its result, while it works
    deaths: int = 0  #: how often it was killed without doing anything for its unit
    done: object = None  #: what was there of its unit when it was killed last
    said: set[str] = field(default_factory=set)  #: lines printed for its unit


class _Pool(Generic[Unit, Result]):
    """The workers, and the answers that are awaited from each."""

    def __init__(
        self,
        ray: Any,
        factory: Callable[[], Callable[[Unit], Result]],
        units: Iterable[Unit],
        options: RayOptions,
        inspect: Callable[[Unit], Remains],
    ) -> None:
        self._ray = ray
        self._factory = ray.put(factory)
        self._units = deque(units)
        self._left = len(self._units)  # without a result, and not given up
        self._options = options
        self._inspect = inspect
        self._results: deque[Result] = deque()
        self._given_up: list[str] = []
        #: by reference to an answer: who gives it, and the method that handles it
        self._waiting: dict[Any, tuple[_Member[Unit], Callable[[_Member[Unit], Any], None]]] = {}
        kind = ray.remote(Worker).options(
            num_cpus=options.threads, num_gpus=options.gpus, max_restarts=-1, max_concurrency=3
        )
        count = min(options.workers, len(self._units))
        self._members: list[_Member[Unit]] = [_Member(kind.remote()) for _ in range(count)]
        for member in self._members:
            self._prepare(member)

    def results(self) -> Iterator[Result]:
        """Yields the results of all units; raises ``ChildProcessError`` if some were given up."""
        patience: float | None = _START_PATIENCE
        while self._left:
            ready, _ = self._ray.wait(list(self._waiting), timeout=patience)
            if not ready:
                each = f"{self._options.threads} CPUs and {self._options.gpus:g} GPUs"
                _say(f"no worker has started yet: each needs {each}")
            patience = None
            for answer in ready:
                member, handle = self._waiting.pop(answer)
                handle(member, answer)
            while self._results:
                yield self._results.popleft()
        if self._given_up:
            raise ChildProcessError("; ".join(self._given_up))

    def stop(self) -> None:
        """Interrupts the workers that still work, waits for them, and ends all workers."""
        working = [member for member in self._members if member.run is not None]
        for member in working:
            member.actor.stop.remote()
        for member in working:
            with suppress(self._ray.exceptions.RayError):
                self._print(member, self._ray.get(member.run)[1])
        for member in self._members:
            self._ray.kill(member.actor)

    def _prepare(self, member: _Member[Unit]) -> None:
        # Ray repeats this call until the worker has been started, wherever there is room.
        call = member.actor.prepare.options(max_task_retries=-1)
        answer = call.remote(self._factory, self._options.threads, os.getcwd())
        self._waiting[answer] = (member, self._prepared)

    def _prepared(self, member: _Member[Unit], answer: Any) -> None:
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise ChildProcessError(f"a worker of Ray cannot be started: {why}") from error
        if member.unit is None:
            self._next(member)
        else:
            self._begin(member)

    def _next(self, member: _Member[Unit]) -> None:
        if not self._units:
            self._ray.kill(member.actor)  # others can use its resources
            return
        member.unit = self._units.popleft()
        member.deaths, member.done = 0, None
        member.said.clear()
        self._begin(member)

    def _begin(self, member: _Member[Unit]) -> None:
        member.run = member.actor.run.remote(member.unit)
        self._waiting[member.run] = (member, self._ended)
        self._listen(member)

    def _listen(self, member: _Member[Unit]) -> None:
        self._waiting[member.actor.lines.remote()] = (member, self._heard)

    def _heard(self, member: _Member[Unit], answer: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # the answer on its unit will say more
            self._print(member, self._ray.get(answer))
            if member.run is not None:
                self._listen(member)

    def _ended(self, member: _Member[Unit], answer: Any) -> None:
        member.run = None
        try:
            result, lines = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError:
            self._killed(member)
            return
        self._print(member, lines)
        self._results.append(result)
        self._left -= 1
        self._next(member)

    def _killed(self, member: _Member[Unit]) -> None:
        assert member.unit is not None
        remains = self._inspect(member.unit)
        member.deaths = member.deaths + 1 if remains.done == member.done else 1
        member.done = remains.done
        if member.deaths > RESTARTS:
            times = f"a worker was killed {member.deaths} times without doing anything new"
            self._given_up.append(f"{times}; the cause may be {remains.suspects}")
            member.unit = None
            self._left -= 1
        else:
            _say("a worker was killed and is started again")
        self._prepare(member)

    def _print(self, member: _Member[Unit], lines: Iterable[str]) -> None:
        for line in lines:
            if line not in member.said:
                member.said.add(line)
                _say(line)


def _say(sentence: str) -> None:
    """Prints a sentence on stderr, above a bar."""
    tqdm.write(sentence, file=sys.stderr)
