"""A run that fails leaves nothing behind that the next run would meet."""

from __future__ import annotations

import os

import pytest

from msight_bus.bench import workers
from msight_bus.bench.jobs import Plan
from msight_bus.bench.runner import Runner
from msight_bus.bench.scenarios import PUBLISHER, SUBSCRIBER
from msight_bus.bench.sides import BusPublisher, Side
from msight_bus.bench.workers import WorkerError


class Dies(BusPublisher):
    """A publisher whose process ends while it connects."""

    async def open(self, target):
        os._exit(3)


class Fails(BusPublisher):
    """A publisher that cannot connect."""

    async def open(self, target):
        raise ConnectionRefusedError("nobody there")


@pytest.mark.parametrize(("side", "says"), [("Dies", "the process ended"), ("Fails", "nobody there")])
def test_the_run_after_a_failed_one_is_whole(nats, topic, side, says):
    publisher, subscriber = Side(PUBLISHER), Side(SUBSCRIBER)
    plan = Plan(topic, 64, 0.1, 0.0, rate=200.0)
    with Runner({**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}) as runner:
        with pytest.raises(WorkerError, match=says):
            runner.run(Side(f"{__name__}:{side}"), subscriber, plan)
        _, received = runner.run(publisher, subscriber, plan)
    assert len(received.latencies) == 20


def test_a_run_is_waited_for_as_long_as_it_lasts(nats, topic, monkeypatch):
    plan = Plan(topic, 64, 30.0, 0.0, rate=200.0, messages=40)
    with Runner({**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}) as runner:
        result = runner.result

        def without_patience(worker):
            monkeypatch.setattr(workers, "_ANSWER_WITHIN", 0)
            return result(worker)

        monkeypatch.setattr(runner, "result", without_patience)
        _, received = runner.run(Side(PUBLISHER), Side(SUBSCRIBER), plan)
    assert len(received.latencies) == 40
