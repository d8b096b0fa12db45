"""The parent's side: brings two workers together for a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

from msight_bus.bench.board import GIVE_UP, GO, SENT, Board
from msight_bus.bench.candidates import Side
from msight_bus.bench.jobs import Plan, Received, Sent, VoidError
from msight_bus.bench.worker import Worker, WorkerError


class Stage:
    """Workers at one broker. Each stays for all rounds of a measurement; connections are new in every run."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """``env``: the ``MSIGHT_`` variables that lead to the broker."""
        self._env = env
        self._board = Board()
        self._workers: dict[tuple[str, str, str, str], Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End all workers, and with them what they hold."""
        self._stack.close()
        self._workers.clear()

    def prepare(self, role: str, side: Side) -> Worker:
        """The worker of a side, started if need be."""
        key = (role, side.path, repr(sorted(side.options.items())), side.loop)
        if key not in self._workers:
            self._workers[key] = self._stack.enter_context(Worker(side, role, self._env, self._board))
        return self._workers[key]

    def run(self, publisher: Side, subscriber: Side, plan: Plan) -> tuple[Sent, Received]:
        """One run of both sides.

        Raises:
            VoidError: something was lost or came twice, so there is no result.
            WorkerError: a side failed.
        """
        self._board.clear()
        receiving, sending = self.prepare("subscribe", subscriber), self.prepare("publish", publisher)
        receiving.begin(plan)
        receiving.wait_ready()
        sending.begin(plan)
        sending.wait_ready()
        self._board.view[GO] = 1
        sent = self._result(sending)
        if isinstance(sent, Exception):
            self._result(receiving)
            raise sent
        received = self._result(receiving)
        if isinstance(received, Exception):
            raise received
        return sent, received

    def run_publisher(self, publisher: Side, plan: Plan) -> Sent:
        """One run without a subscriber, on a broker that keeps what is published."""
        self._board.clear()
        worker = self.prepare("publish", publisher)
        worker.begin(plan)
        worker.wait_ready()
        self._board.view[GO] = 1
        sent: Sent = worker.result()
        return sent

    def run_subscriber(self, subscriber: Side, plan: Plan) -> Received:
        """One run on ``plan.messages`` messages that the broker has kept."""
        self._board.clear()
        self._board.view[SENT] = plan.messages
        worker = self.prepare("subscribe", subscriber)
        worker.begin(plan)
        worker.wait_ready()
        received: Received = worker.result()
        return received

    def _result(self, worker: Worker) -> Any:
        try:
            return worker.result()
        except (VoidError, WorkerError) as error:
            self._board.view[GIVE_UP] = 1
            return error
