"""The parent's side: brings two workers together for a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Self

from msight_bus.bench.board import GIVE_UP, GO, SENT, Board
from msight_bus.bench.candidates import Side
from msight_bus.bench.figures import Figures
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
        self._make_ready(plan, receiving)
        self._make_ready(plan, sending, receiving)
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
        worker.expect("ready")
        self._board.view[GO] = 1
        sent: Sent = worker.expect("done")
        return sent

    def run_subscriber(self, subscriber: Side, plan: Plan) -> Received:
        """One run on ``plan.messages`` messages that the broker has kept."""
        self._board.clear()
        self._board.view[SENT] = plan.messages
        worker = self.prepare("subscribe", subscriber)
        worker.begin(plan)
        worker.expect("ready")
        received: Received = worker.expect("done")
        return received

    def observe(
        self,
        observer: Side,
        plan: Plan,
        publisher: Side | None = None,
        meanwhile: AbstractContextManager[Any] | None = None,
    ) -> Figures:
        """What ``observer`` tells while ``publisher`` sends, or ``meanwhile`` something else goes on.

        Raises:
            WorkerError: a side failed.
        """
        self._board.clear()
        watching = self.prepare("observe", observer)
        sending = None if publisher is None else self.prepare("publish", publisher)
        self._make_ready(plan, watching)
        if sending is not None:
            self._make_ready(plan, sending, watching)
        with meanwhile or nullcontext():
            self._board.view[GO] = 1
            found = self._result(watching, "watched")
        sent = None if sending is None else self._result(sending)
        if not isinstance(found, Exception):
            found = self._result(watching)
        for one in (found, sent):
            if isinstance(one, Exception):
                raise one
        figures: Figures = found
        return figures

    def _make_ready(self, plan: Plan, worker: Worker, *others: Worker) -> None:
        """Begin a run; if that fails, ``others`` that have begun it end it."""
        try:
            worker.begin(plan)
            worker.expect("ready")
        except (VoidError, WorkerError):
            self._give_up(worker)
            for other in others:
                self._result(other)
            raise

    def _result(self, worker: Worker, what: str = "done") -> Any:
        try:
            return worker.expect(what)
        except VoidError as error:
            self._board.view[GIVE_UP] = 1
            return error
        except WorkerError as error:
            self._give_up(worker)
            return error

    def _give_up(self, failed: Worker) -> None:
        """A worker that failed may be dead: the next run gets a new one."""
        self._board.view[GIVE_UP] = 1
        failed.close()
        self._workers = {key: worker for key, worker in self._workers.items() if worker is not failed}
