"""Run functions beside the event loop, in threads and processes that never keep a program from ending."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 40
_GONE_WITHIN = 1.0
"""Seconds for a killed process to be gone."""


async def off_loop(function: Callable[[*Ts], T], *args: *Ts, process: bool = False) -> T:
    """Run ``function(*args)`` beside the event loop: ``boxes = await off_loop(detect, frame)``.

    A coroutine that computes holds up every node of its process; off the loop, the others go on. Choose a thread for code that
    releases the interpreter's lock, as NumPy, OpenCV and most inference engines do, and ``process=True`` for pure Python: there
    ``function`` must be importable, and it, its arguments and its result are pickled.

    At most 40 threads, and as many processes as there are processors, are in use at a time; more calls wait their turn. A thread
    that hangs does not keep the program from ending. Ctrl-C does not interrupt the processes: the program decides when they end.

    Raises:
        Exception: whatever ``function`` raises. When this call is cancelled, a process is killed; a thread cannot be, so it
            runs to its end and its result is dropped.
    """
    loop = asyncio.get_running_loop()
    if not process:
        run = partial(contextvars.copy_context().run, function, *args)
        return await loop.run_in_executor(_threads, partial(_Call(function), run))
    call = _ProcessCall(function)
    done = asyncio.ensure_future(loop.run_in_executor(_processes, call, pickle.dumps((function, args))))
    try:
        await asyncio.wait((done,))
    except asyncio.CancelledError:
        call.kill()
        await asyncio.wait((done,), timeout=_GONE_WITHIN)
        done.cancel()
        raise
    return done.result()  # type: ignore[no-any-return]


def left_running() -> list[str]:
    """Return a line for each call that runs now, for a program that ends without them."""
    now = time.monotonic()
    return [f"{call.name} ({call.where}, {now - call.began:.0f} s)" for call in tuple(_Call.running)]


class _Call:
    """One call.

    Attributes:
        running: those that run now.
    """

    running: set[_Call] = set()  # noqa: RUF012 - of the whole program
    where = "a thread"

    def __init__(self, function: Callable[..., object]) -> None:
        self.name = getattr(function, "__qualname__", repr(function))
        self.began = 0.0

    def __call__(self, run: Callable[[], T], /) -> T:
        """Run ``run()``, counted as this call."""
        self.began = time.monotonic()
        self.running.add(self)
        try:
            return run()
        except StopIteration as error:  # a future cannot hold it, as a coroutine cannot raise it (PEP 479)
            raise RuntimeError(f"{self.name} raised StopIteration.") from error
        finally:
            self.running.discard(self)


class _ProcessCall(_Call):
    """One call in a process, made from a thread that waits for the result."""

    where = "a process"

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        self._worker: _Worker | None = None
        self._killed = False

    def __call__(self, request: bytes, /) -> Any:  # type: ignore[override]
        """Send the pickled ``request`` to a process and return the result."""
        return super().__call__(partial(self._ask, request))

    def _ask(self, request: bytes) -> Any:
        worker = self._worker = _idle_worker() or _Worker()
        if self._killed:
            worker.kill()
        try:
            succeeded, result, trace = worker.ask(request)
        except (EOFError, OSError):
            worker.kill()
            worker.join()
            raise RuntimeError(f"The process of {self.name} ended before its result.") from None
        except Exception:  # the result cannot be unpickled
            _idle.append(worker)
            raise
        _idle.append(worker)
        if not succeeded:
            result.add_note(f"In a process of off_loop:\n{trace}")
            raise result
        return result

    def kill(self) -> None:
        """End the process."""
        self._killed = True
        if self._worker is not None:
            self._worker.kill()


class _Worker:
    """A process that runs one call after the other."""

    def __init__(self) -> None:
        spawning = multiprocessing.get_context("spawn")  # a fork would copy the loop, its sockets and its locks
        self._connection, other = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(other,), daemon=True, name="msight_bus off_loop")
        # A process inherits the mask of the thread that starts it: Ctrl-C on a terminal goes to the whole group.
        before = (
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,)) if hasattr(signal, "pthread_sigmask") else None
        )
        try:
            self._process.start()
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()

    def ask(self, request: bytes) -> Any:
        """Return ``(True, result, "")`` or ``(False, error, traceback)``."""
        self._connection.send_bytes(request)
        return pickle.loads(self._connection.recv_bytes())  # noqa: S301 - from our own process

    @property
    def is_alive(self) -> bool:
        """Whether the process is there: somebody may have killed it."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()

    def join(self) -> None:
        """Wait for the end of a process that was killed."""
        self._process.join(_GONE_WITHIN)


def _serve(connection: Connection) -> None:
    """Run in a process: call what comes, until the program is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError):
        while True:
            request = connection.recv_bytes()
            try:
                function, args = pickle.loads(request)  # noqa: S301 - from our own program
                answer = pickle.dumps((True, function(*args), ""))
            except BaseException as error:
                answer = _failure(error)
            connection.send_bytes(answer)


def _failure(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        answer = pickle.dumps((False, error, trace))
        pickle.loads(answer)  # noqa: S301 - it was made here
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return answer


class DaemonThreads(ThreadPoolExecutor):
    """Threads that end with the program, whatever they are at; those of the base class would keep it alive.

    A subclass only because `asyncio.loop.set_default_executor` takes nothing else: nothing of the base is used.
    """

    def __init__(self, most: int) -> None:
        """``most``: maximum number of threads."""
        self._most = most
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # a child has none of the threads

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._count = 0
        self._free = 0

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the threads end with the program."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> Future[T]:
        """Run ``function`` in a thread, when one is free."""
        future: Future[T] = Future()
        with self._lock:
            self._calls.put((future, lambda: function(*args, **keywords)))
            if self._free:
                self._free -= 1
            elif self._count < self._most:
                self._count += 1
                threading.Thread(target=self._work, daemon=True, name=f"msight_bus off_loop {self._count}").start()
        return future

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call  # an idle thread keeps nothing alive
            with self._lock:
                self._free += 1


_threads = DaemonThreads(_THREADS)
_processes = DaemonThreads(os.cpu_count() or 1)
_idle: list[_Worker] = []


def _idle_worker() -> _Worker | None:
    """Take a process that waits for a call, if there is one."""
    with suppress(IndexError):
        while True:
            worker = _idle.pop()
            if worker.is_alive:
                return worker
    return None
