"""A process that does one side's jobs, one after the other, and the parent's handle of it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import traceback
from collections.abc import Mapping
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, Self

from msight_bus.bench.board import Board
from msight_bus.bench.candidates import LoopName, Side, Target
from msight_bus.bench.jobs import Plan, VoidError, publish, subscribe
from msight_bus.bench.observing import observe
from msight_bus.settings import BusSettings


class WorkerError(Exception):
    """A side failed in its process; the text has its traceback."""


def serve(side: Side, role: str, env: Mapping[str, str], board: Board, connection: Connection) -> None:
    """The worker's main function: a plan comes in, an outcome goes out."""
    settings = BusSettings(environ=env)
    job = {"subscribe": subscribe, "publish": publish, "observe": observe}[role]
    try:
        side.make()  # the imports cost no run any time
    except BaseException:
        connection.send(("unavailable", traceback.format_exc(limit=-1)))
        return
    connection.send(("up", None))
    while (plan := connection.recv()) is not None:
        target = Target(settings, plan.topic, plan.size, plan.from_start, plan.seconds + plan.warm_up)

        def tell(what: str) -> None:
            connection.send((what, None))

        try:
            with asyncio.Runner(loop_factory=_loop_factory(side.loop)) as runner:
                outcome = runner.run(job(side.make(), plan, target, board.view, tell))  # type: ignore[operator]
            connection.send(("done", outcome))
        except VoidError as error:
            connection.send(("void", str(error)))
        except BaseException:
            connection.send(("failed", traceback.format_exc()))


def _loop_factory(name: LoopName) -> Any:
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop  # noqa: PLC0415 - not there on Windows

    return uvloop.new_event_loop


@cache
def _context() -> Any:
    """Workers are forked from a clean process that has done the imports; where there is no fork, each imports by itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["msight_bus.bench.worker", "msight_bus.bench.bus_sides"])
    return context


class Worker:
    """The parent's handle of a worker process."""

    def __init__(self, side: Side, role: str, env: Mapping[str, str], board: Board) -> None:
        context = _context()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(side, role, dict(env), board, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.name = f"{role} {side.path} {dict(side.options) or ''}"
        self._up = False

    def begin(self, plan: Plan) -> None:
        """Start a run."""
        if not self._up:
            self.expect("up")
            self._up = True
        self._connection.send(plan)

    def expect(self, what: str) -> Any:
        """What it says next, which is ``"ready"``, ``"watched"`` or, with the outcome of the run, ``"done"``.

        Raises:
            VoidError: the run counts for nothing.
            WorkerError: it failed, or says nothing.
        """
        if not self._connection.poll(120):
            raise WorkerError(f"{self.name} says nothing.")
        try:
            said, value = self._connection.recv()
        except EOFError:
            raise WorkerError(f"{self.name} has died.") from None
        if said == "void":
            raise VoidError(value)
        if said != what:
            raise WorkerError(f"{self.name}: {value}")
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. May be called again."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
