"""Run functions off the event loop, in threads and processes that do not delay the end of the program."""

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
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

from msight_bus.errors import described

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 40
_GONE_WITHIN = 1.0
"""Seconds to wait for the end of a killed process."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that a terminal, supervisord or systemd sends to the whole process group, including the processes of `off_loop`."""


async def off_loop(function: Callable[[*Ts], T], *args: *Ts, process: bool = False) -> T:
    """Run ``function(*args)`` off the event loop: ``boxes = await off_loop(detect, frame)``.

    A coroutine that computes blocks every node of its process; a function off the event loop does not. Use a thread for code that
    releases the GIL, as NumPy, OpenCV and most inference engines do, and ``process=True`` for pure Python.

    A function in a process can start programs with `subprocess`, but not with `multiprocessing`: the process is daemonic, and a
    daemonic process cannot have children.

    At most 40 threads and one process for each processor run at a time; further calls wait. A hanging thread does not delay the
    end of the program. SIGINT (Ctrl-C) and a SIGTERM to the whole process group do not interrupt the processes; they end with the
    program.

    Args:
        function: the function to run; with ``process=True``, it must be importable.
        args: positional arguments; with ``process=True``, they and the result are pickled.
        process: whether to run in a process instead of a thread.

    Returns:
        The result of ``function``.

    Raises:
        Exception: as ``function`` raises.
        CancelledError: the call was cancelled. A process is killed; a thread runs to its end and its result is discarded.
        RuntimeError: the process ended before its result, or ``function`` called `sys.exit`.
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
    try:
        return done.result()  # type: ignore[no-any-return]
    finally:
        del done  # breaks the reference cycle of the error and this frame, which would keep the caller's data in memory


def left_running() -> list[str]:
    """Return a line for each running call, for the log of a program that ends before them."""
    now = time.monotonic()
    return [f"{call.name} ({call.where}, {now - call.began:.0f} s)" for call in tuple(_Call.running)]


class _Call:
    """One call.

    Attributes:
        running: all running calls of the program.
        name: name of the function.
        where: ``"a thread"`` or ``"a process"``, for the log.
        began: start of the call, by ``time.monotonic``.
    """

    running: set[_Call] = set()  # noqa: RUF012 - shared by all calls
    where = "a thread"

    def __init__(self, function: Callable[..., object]) -> None:
        self.name = getattr(function, "__qualname__", repr(function))
        self.began = 0.0

    def __call__(self, run: Callable[[], T], /) -> T:
        """Run ``run()`` and register the call while it runs."""
        self.began = time.monotonic()
        self.running.add(self)
        try:
            return run()
        except (StopIteration, SystemExit, KeyboardInterrupt) as error:
            # A future cannot carry StopIteration (PEP 479); the others end the event loop.
            raise RuntimeError(f"{self.name} raised {error!r}.") from error
        finally:
            self.running.discard(self)


class _ProcessCall(_Call):
    """One call in a process. A thread sends the request and waits for the result."""

    where = "a process"

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._killed = False

    def __call__(self, request: bytes, /) -> Any:  # type: ignore[override]
        """Send the pickled ``request`` to a process and return the result.

        Raises:
            Exception: as the function raises.
            RuntimeError: the process ended before its result.
        """
        return super().__call__(partial(self._ask, request))

    def _ask(self, request: bytes) -> Any:
        worker = self._begin(request)
        try:
            answer = worker.answer()
        except (EOFError, OSError):
            status = worker.end()
            raise RuntimeError(
                f"The process of {self.name} ended before its result, with exit code {status}."
            ) from None
        except BaseException:  # for example MemoryError; the rest of the answer is still in the pipe
            worker.kill()
            worker.end()
            raise
        self._release(worker)
        succeeded, result, trace = pickle.loads(answer)  # noqa: S301 - from a process of this program
        if not succeeded:
            result.add_note(f"Traceback in the process of off_loop:\n{trace}")
            try:
                raise result
            finally:
                del result  # as in `off_loop`: breaks a reference cycle
        return result

    def _begin(self, request: bytes) -> _Worker:
        """Send the request to a process and return the process; idle processes that have ended are discarded."""
        while (idle := _idle_worker()) is not None:
            self._use(idle)
            if idle.begin(request) or self._killed:
                return idle
            idle.end()
        worker = _Worker()
        self._use(worker)
        worker.begin(request)
        return worker

    def _use(self, worker: _Worker | None) -> None:
        with self._lock:
            self._worker = worker
            if worker is not None and self._killed:
                worker.kill()

    def _release(self, worker: _Worker) -> None:
        """Return a process to the idle ones; from then on, `kill` does not reach the process."""
        self._use(None)
        if self._killed:
            worker.end()
        else:
            _idle.append(worker)

    def kill(self) -> None:
        """Kill the process of the call, now or as soon as the call has one; does nothing once the call has its result."""
        with self._lock:
            self._killed = True
            if self._worker is not None:
                self._worker.kill()


class _Worker:
    """A process that runs calls, one at a time."""

    def __init__(self) -> None:
        spawning = multiprocessing.get_context("spawn")  # a fork would copy the loop, its sockets and its locks
        self._connection, other = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(other,), daemon=True, name="msight_bus off_loop")
        # The process inherits the signal mask of the thread that starts it; it installs its handlers later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        try:
            self._process.start()
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()
        # multiprocessing would terminate the process at the end of the program, which it ignores, and wait for it.
        self._kill_at_exit = Finalize(None, self._process.kill, exitpriority=1)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def begin(self, request: bytes) -> bool:
        """Send a request; return whether the process has received it. One that has ended meanwhile has run nothing."""
        try:
            self._connection.send_bytes(request)
            self._connection.recv_bytes()
        except (EOFError, OSError):
            return False
        return True

    def answer(self) -> bytes:
        """Return ``(True, result, "")`` or ``(False, error, traceback)``, pickled."""
        return self._connection.recv_bytes()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def end(self) -> int | None:
        """End the process, if it has not ended, and return its exit code."""
        self._process.join(_GONE_WITHIN)
        self._kill_at_exit()
        self._process.join(_GONE_WITHIN)
        return self._process.exitcode


def _idle_worker() -> _Worker | None:
    """Return an idle process, if there is one; discard those that have ended, for example by the OOM killer."""
    with suppress(IndexError):  # another thread can take the last one
        while True:
            worker = _idle.pop()
            if worker.is_alive:
                return worker
            worker.end()
    return None


def _serve(connection: Connection) -> None:
    """Run the received calls, in the process, until the program has ended."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # a handler, because child processes would inherit SIG_IGN
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=connection.close)  # the pipe must end with this process
    with suppress(EOFError):
        while True:
            request = connection.recv_bytes()
            connection.send_bytes(b"")  # from here on, another process must not run the call
            try:
                function, args = pickle.loads(request)  # noqa: S301 - from this program
                answer = pickle.dumps((True, function(*args), ""))
            except BaseException as error:
                answer = _failure(error)
            if connection.closed:  # the function has forked, and this is the child
                os._exit(0)
            connection.send_bytes(answer)


def end_with_parent() -> None:
    """Wait for the end of the parent process, and end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _failure(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        answer = pickle.dumps((False, error, trace))
        pickle.loads(answer)  # noqa: S301 - pickled above
    except Exception:
        return pickle.dumps((False, RuntimeError(described(error)), trace))
    return answer


class DaemonThreads(ThreadPoolExecutor):
    """An executor with daemon threads; the program can end while they run, unlike with the base class.

    Inherits only because `asyncio.loop.set_default_executor` requires the type; uses nothing of the base class.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: maximum number of threads.
        """
        self._most = most
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # a forked child has none of the threads

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._count = 0
        self._free = 0

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing; the threads end with the program."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> Future[T]:
        """Run ``function`` in a thread as soon as one is free, and return the future of its result."""
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
            del future, call  # an idle thread must not hold references
            with self._lock:
                self._free += 1


_threads = DaemonThreads(_THREADS)
_processes = DaemonThreads(os.cpu_count() or 1)
_idle: list[_Worker] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # the processes belong to the parent
