"""A run that fails leaves nothing behind that the next run would meet."""

from __future__ import annotations

import os

import pytest

from msight_bus.bench.bus_sides import BusPublisher
from msight_bus.bench.candidates import Side
from msight_bus.bench.jobs import Plan
from msight_bus.bench.own_broker import fresh_topic, sides
from msight_bus.bench.stage import Stage
from msight_bus.bench.worker import WorkerError


class Dies(BusPublisher):
    """A publisher whose process ends while it connects."""

    async def open(self, target):
        os._exit(3)


class Fails(BusPublisher):
    """A publisher that cannot connect."""

    async def open(self, target):
        raise ConnectionRefusedError("nobody there")


@pytest.mark.parametrize(("side", "says"), [("Dies", "has died"), ("Fails", "nobody there")])
def test_the_run_after_a_failed_one_is_whole(nats, side, says):
    publisher, subscriber = sides("uvloop")
    plan = Plan(fresh_topic(), 64, 0.1, 0.0, rate=200.0)
    with Stage({**nats.env, "MSIGHT_PUBSUB_BACKEND": "nats"}) as stage:
        with pytest.raises(WorkerError, match=says):
            stage.run(Side(f"{__name__}:{side}"), subscriber, plan)
        _, received = stage.run(publisher, subscriber, plan)
    assert len(received.latencies) == 20
