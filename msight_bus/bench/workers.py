"""Processes that run one side each, and the counters that these processes share."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from typing import Any

from msight_bus.bench.jobs import GIVE_UP, Plan, VoidError
from msight_bus.bench.sides import Side, Target, load
from msight_bus.executors import end_with_parent
from msight_bus.settings import BusSettings

_ANSWER_WITHIN = 120
"""Maximum seconds until an answer, in addition to the duration of a run."""

_END_WITHIN = 2


class WorkerError(Exception):
    """A side failed in its process; the text has its traceback."""


class SharedCounters:
    """Shared memory with the fields that `jobs` names; one process writes each field and the others read it."""

    def __init__(self) -> None:
        self._shared: Any = RawArray("Q", GIVE_UP + 1)

    @property
    def view(self) -> memoryview:
        """The fields; faster to read than through ctypes."""
        return memoryview(self._shared).cast("B").cast("Q")

    def clear(self) -> None:
        """Set every field to 0, for the next run."""
        self.view[:] = memoryview(bytes(8 * (GIVE_UP + 1))).cast("Q")


def serve(side: Side, job: str, env: Mapping[str, str], counters: SharedCounters, connection: Connection) -> None:
    """Run the main function of a worker: receive plans and send outcomes, until ``None`` is received or the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended
        _serve(side, job, env, counters, connection)


def _serve(side: Side, job: str, env: Mapping[str, str], counters: SharedCounters, connection: Connection) -> None:
    settings = BusSettings(environ=env)
    run = load(job)
    try:
        side.make()  # import before the first run
    except BaseException:
        connection.send(("unavailable", traceback.format_exc(limit=-1)))
        return
    connection.send(("up", None))
    while (plan := connection.recv()) is not None:
        target = Target(settings, plan.topic, plan.size, plan.from_start, plan.seconds + plan.warm_up)

        def tell(what: str) -> None:
            connection.send((what, None))

        try:
            with asyncio.Runner(loop_factory=_loop_factory(side)) as runner:
                outcome = runner.run(run(side.make(), plan, target, counters.view, tell))
            connection.send(("done", outcome))
        except VoidError as error:
            connection.send(("void", str(error)))
        except BaseException:
            connection.send(("failed", traceback.format_exc()))


def _loop_factory(side: Side) -> Any:
    if side.loop == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop  # noqa: PLC0415 - not available on Windows

    return uvloop.new_event_loop


@cache
def _context() -> Any:
    """Fork workers from a clean process that has imported the bus; without fork, each worker imports it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Worker:
    """The parent's handle of a worker process."""

    def __init__(self, side: Side, job: str, env: Mapping[str, str], counters: SharedCounters) -> None:
        load(job)  # raise for a wrong name in the parent
        context = _context()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(side, job, dict(env), counters, theirs), daemon=True)
        # A process inherits the signal mask; it could be interrupted before `serve` ignores SIGINT.
        before = (
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,)) if hasattr(signal, "pthread_sigmask") else ()
        )
        try:
            self._process.start()
        finally:
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.name = f"{job.rpartition(':')[2]} {side.path} {dict(side.options) or ''}"
        self._up = False
        self._duration = 0.0

    def begin(self, plan: Plan) -> None:
        """Start a run."""
        if not self._up:
            self.expect("up")
            self._up = True
        self._duration = plan.warm_up + plan.seconds
        self._connection.send(plan)

    def expect(self, what: str) -> Any:
        """Return the value of the message ``what``; the value of ``"done"`` is the outcome of the run.

        Raises:
            VoidError: the run is void.
            WorkerError: the side failed, ended or did not answer.
        """
        within = _ANSWER_WITHIN + self._duration
        if not self._connection.poll(within):
            raise WorkerError(f"{self.name}: no answer within {within:g} s.")
        try:
            said, value = self._connection.recv()
        except EOFError:
            raise WorkerError(f"{self.name}: the process ended.") from None
        if said == "void":
            raise VoidError(value)
        if said != what:
            raise WorkerError(f"{self.name}: {value}")
        return value

    def close(self, *, kill: bool = False) -> None:
        """End the process, with ``kill`` also during a run; idempotent."""
        if kill:
            self._process.kill()
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(_END_WITHIN)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
