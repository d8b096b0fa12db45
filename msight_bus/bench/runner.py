"""The parent's side of a run: control a publisher and a subscriber."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from msight_bus.bench.jobs import GIVE_UP, GO, Plan, Received, Sent, VoidError
from msight_bus.bench.sides import Side
from msight_bus.bench.workers import SharedCounters, Worker, WorkerError

PUBLISH, SUBSCRIBE = "msight_bus.bench.jobs:publish", "msight_bus.bench.jobs:subscribe"


class Runner:
    """Workers for one broker. A worker is reused for all runs of its side; each run opens new connections."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """
        Args:
            env: the ``MSIGHT_`` variables of the broker.
        """
        self._env = env
        self.counters = SharedCounters()
        self._workers: dict[tuple[str, str, str, str], Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.dismiss(kill=kind is not None)

    def dismiss(self, *, kill: bool = False) -> None:
        """End all workers."""
        while self._workers:
            self._workers.popitem()[1].close(kill=kill)

    def prepare(self, job: str, side: Side) -> Worker:
        """Return the worker of a side, started if necessary."""
        key = (job, side.path, repr(sorted(side.options.items())), side.loop)
        if key not in self._workers:
            self._workers[key] = Worker(side, job, self._env, self.counters)
        return self._workers[key]

    def run(self, publisher: Side, subscriber: Side, plan: Plan) -> tuple[Sent, Received]:
        """Run both sides once.

        Raises:
            VoidError: messages were lost or duplicated, so there is no result.
            WorkerError: a side failed.
        """
        self.counters.clear()
        receiving, sending = self.prepare(SUBSCRIBE, subscriber), self.prepare(PUBLISH, publisher)
        self.make_ready(plan, receiving)
        self.make_ready(plan, sending, receiving)
        self.counters.view[GO] = 1
        sent = self.result(sending)
        received = self.result(receiving)
        for outcome in (sent, received):
            if isinstance(outcome, Exception):
                raise outcome
        return sent, received

    def make_ready(self, plan: Plan, worker: Worker, *others: Worker) -> None:
        """Start a run in ``worker``; if that fails, end the run in ``others``, which have started it."""
        try:
            worker.begin(plan)
            worker.expect("ready")
        except (VoidError, WorkerError):
            self._give_up(worker)
            for other in others:
                self.result(other)
            raise

    def result(self, worker: Worker, what: str = "done") -> Any:
        """Return the outcome of a run, or its error, after which the other side ends the run."""
        try:
            return worker.expect(what)
        except VoidError as error:
            self.counters.view[GIVE_UP] = 1
            return error
        except WorkerError as error:
            self._give_up(worker)
            return error

    def _give_up(self, failed: Worker) -> None:
        """End the run and the failed worker: the next run starts a new one."""
        self.counters.view[GIVE_UP] = 1
        failed.close()
        self._workers = {key: worker for key, worker in self._workers.items() if worker is not failed}
