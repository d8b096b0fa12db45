"""Members of the bus and of confluent-kafka share a Kafka group: no message is lost when they join, leave or are killed
under load, in any order."""

from __future__ import annotations

import itertools
import logging

import pytest

from msight_bus.backends.kafka import group as joining
from tests.support.brokers import GROUP
from tests.support.librdkafka import PROTOCOLS
from tests.support.mixed_groups import SETTINGS, MixedGroup

ORDERS = [
    order
    for order in itertools.permutations(["ours joins", "ours leaves", "other joins", "other leaves"])
    if order.index("ours joins") < order.index("ours leaves")
    and order.index("other joins") < order.index("other leaves")
]


@pytest.mark.timeout(170)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_members_of_two_clients_join_and_leave_in_every_order(kafka, book, topic, protocol):
    group = MixedGroup(kafka, topic, book.ledgers[topic], protocol)
    async with kafka.connect(**SETTINGS) as bus, bus.subscribe(topic, group_id=GROUP):
        pass  # the group has its beginning from now on
    async with group.load():
        for order in ORDERS:
            for step in order:
                who, what = step.split()
                await getattr(group, what)(who)
                await group.flows()
    account = book.account()
    assert (account.silent, account.damaged, account.unknown) == (0, 0, 0)


@pytest.mark.timeout(100)
async def test_joining_waits_for_a_killed_member_of_another_client_and_logs_it(kafka, book, topic, monkeypatch, caplog):
    """The session timeout of the member is four times the connect timeout."""
    monkeypatch.setattr(joining, "_WARNING_INTERVAL", 0.5)
    group = MixedGroup(kafka, topic, book.ledgers[topic], "classic")
    async with kafka.connect(**SETTINGS) as bus, bus.subscribe(topic, group_id=GROUP):
        pass
    async with group.load():
        await group.joins("other", "other_that_is_killed")
        await group.leaves("other")
        with caplog.at_level(logging.WARNING, "msight_bus"):
            async with kafka.connect(**{**SETTINGS, "MSIGHT_CONNECT_TIMEOUT": "1.5"}) as bus:
                async with bus.subscribe(topic, group_id=GROUP) as messages:
                    assert {where.partition for where in messages._at_broker.partitions} == set(range(6))
    assert [line for line in caplog.messages if f"Joining the group {GROUP}" in line and "session expires" in line]
    assert book.account().silent == 0
