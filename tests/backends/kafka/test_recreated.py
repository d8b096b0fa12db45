"""Subscriptions whose topic is deleted and recreated: the new topic is read from its beginning, and the gap is reported."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaConnectionError

from msight_bus import AuthenticationError
from msight_bus.backends.kafka import consumer
from msight_bus.backends.kafka.aiokafka_compat import TopicIdentitiesRequest, TopicIdentity
from msight_bus.backends.kafka.aiokafka_compat.member import MarkingAssignor
from msight_bus.events import Gap
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering
from tests.support.kafka_records import Rec, batch_of, raw_producer
from tests.support.operators import AUTHORIZING, Operator
from tests.support.receiving import numbers
from tests.support.rig import own_broker, until

GROUPS = pytest.mark.parametrize("group_id", [GROUP, None], ids=["group", "alone"])
NO_SIZE = "retention"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(consumer, "_LOOK_EVERY", 0.3)


async def make_anew(admin, topic, partitions=1):
    """Delete a topic and make it again; return when the broker no longer serves the former one, as it does under load."""
    former = await identity(admin, topic)
    await admin.delete_topics([topic])
    while (await admin.create_topics([NewTopic(topic, partitions, 1)])).topic_errors[0][1]:
        await asyncio.sleep(0.01)  # it is still being deleted
    while not isinstance(now := await identity(admin, topic), TopicIdentity) or now == former:
        await asyncio.sleep(0.01)


async def identity(admin, topic):
    """The id of a topic at the broker, or an error."""
    response = await admin._client.send(admin._client.get_random_node(), TopicIdentitiesRequest([topic]))
    return response.topics[topic]


async def take_until(messages, last):
    """The numbers of the messages up to one."""
    found = []
    while not found or found[-1] != last:
        found += await numbers(messages, 1)
    return found


@GROUPS
@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_topic_that_is_made_anew_is_read_from_its_beginning(kafka, topic, group_id, partitions):
    events: list = []
    async with administering(kafka) as admin, raw_producer(kafka) as produce, kafka.connect(events=events) as bus:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        async with bus.subscribe(topic, group_id=group_id) as messages:
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(15)]))
            assert await numbers(messages, 15) == list(range(15))
            await make_anew(admin, topic, partitions)
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(100, 120)]))
            found = await take_until(messages, 119)
            if set(found) != set(range(100, 120)):  # read at the old position, and then again from the beginning
                found += await take_until(messages, 119)
            assert set(found) == set(range(100, 120))
            await until(lambda: messages.stats.lag == 0)
            await produce(topic, batch_of(Rec(b"120")))
            assert await numbers(messages, 1) == [120]
    assert [event for event in events if isinstance(event, Gap)] == [Gap(topic, None, NO_SIZE)]


async def test_a_commit_of_the_deleted_topic_is_ignored_until_the_new_partitions_are_assigned(
    kafka, topic, monkeypatch
):
    """The group's leader can assign none of them, because its metadata are out of date."""
    assign, empty = MarkingAssignor.assign, []

    def assign_late(cluster, members):
        if remade and cluster.partitions_for_topic(topic) and not empty:
            empty.append(members)
            return {member: ConsumerProtocolMemberAssignment(MarkingAssignor.version, [], b"") for member in members}
        return assign(cluster, members)

    remade = False
    monkeypatch.setattr(MarkingAssignor, "assign", assign_late)
    async with administering(kafka) as admin, raw_producer(kafka) as produce, kafka.connect() as bus:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        async with bus.subscribe(topic, group_id=f"{topic}.g") as messages:
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(15)]))
            assert await numbers(messages, 15) == list(range(15))
            await make_anew(admin, topic)
            remade = True
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(100, 120)]))
            await until(lambda: empty and not messages._at_broker.partitions and messages._at_broker.member.is_joined)
            await messages._at_broker.member.commit({TopicPartition(topic, 0): OffsetAndMetadata(15, "")})
            messages._at_broker.member.request_rejoin()
            assert await numbers(messages, 20) == list(range(100, 120))


@GROUPS
async def test_a_deleted_topic_is_logged_once(kafka, topic, group_id, caplog):
    """(librdkafka 4836) And received from again when it is there again."""
    async with administering(kafka) as admin, raw_producer(kafka) as produce, kafka.connect() as bus:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        async with bus.subscribe(topic, group_id=group_id) as messages:
            await produce(topic, batch_of(Rec(b"0")))
            assert await numbers(messages, 1) == [0]
            await admin.delete_topics([topic])
            await until(lambda: f"Topic {topic} was deleted" in caplog.text)
            await asyncio.sleep(1)
            assert caplog.text.count("was deleted;") == 1
            await make_anew(admin, topic)
            await produce(topic, batch_of(Rec(b"1")))
            assert await numbers(messages, 1) == [1]


@pytest.mark.faults
@GROUPS
async def test_a_permission_to_describe_that_is_taken_away_is_raised(group_id):
    with own_broker("kafka", AUTHORIZING) as (_, kafka):
        operator = Operator(kafka)
        async with kafka.connect() as bus, bus.subscribe("t", group_id=group_id) as messages:
            await operator.deny("topic", "t", "describe")
            with pytest.raises(AuthenticationError):
                await numbers(messages, 1)
        operator.close()


@GROUPS
async def test_a_topic_that_grew_as_long_meanwhile_is_noticed(kafka, topic, group_id):
    """Nothing tells the two apart but the topic's id: the subscription could not reach the broker meanwhile."""
    events: list = []
    async with administering(kafka) as admin, raw_producer(kafka) as produce, kafka.connect(events=events) as bus:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        async with bus.subscribe(topic, group_id=group_id) as messages:
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(15)]))
            assert await numbers(messages, 15) == list(range(15))
            client = messages._at_broker.client
            original = client.send

            async def unreachable(*_, **options):
                raise KafkaConnectionError("away")

            client.send = unreachable
            await make_anew(admin, topic)
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(100, 120)]))
            client.send = original
            found = await take_until(messages, 119)
            if len(found) < 20:
                found += await take_until(messages, 119)
            assert set(found) == set(range(100, 120))
    assert [event for event in events if isinstance(event, Gap)] == [Gap(topic, None, NO_SIZE)]


async def test_a_late_acknowledgement_settles_no_record_of_the_recreated_topic(kafka, topic):
    async with administering(kafka) as admin, raw_producer(kafka) as produce, kafka.connect() as bus:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            await produce(topic, batch_of(Rec(b"0"), Rec(b"1")))
            old = [await anext(messages) for _ in range(2)]
            await make_anew(admin, topic)
            await produce(topic, batch_of(Rec(b"100"), Rec(b"101")))
            while (await anext(messages)).payload != b"101":
                pass
            for message in old:
                await message.ack()
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            assert await numbers(messages, 2) == [100, 101]
