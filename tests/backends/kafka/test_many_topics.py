"""One consumer of many topics: lists and patterns, topics that appear, are deleted and created again, and groups."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from types import SimpleNamespace

import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Consumer

from msight_bus import AuthenticationError, QueuePolicy, TopicError
from msight_bus.backends.kafka import consumer, fetcher, selected_topics, start_offsets
from msight_bus.backends.kafka.aiokafka_compat import FetchRequest, TopicIdentitiesRequest
from msight_bus.backends.kafka.aiokafka_compat.member import MarkingAssignor
from msight_bus.events import Gap
from tests.support.kafka_admin import administering
from tests.support.librdkafka import CLASSIC, options
from tests.support.operators import AUTHORIZING, Operator
from tests.support.receiving import take
from tests.support.rig import own_broker, until

GROUPS = pytest.mark.parametrize("group_id", ["g", None])
ONE = {"MSIGHT_KAFKA_PARTITIONS": "1"}


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(consumer, "_LOOK_EVERY", 0.3)
    monkeypatch.setattr(consumer, "_MATCH_EVERY", 0.2)
    monkeypatch.setattr(fetcher, "_SESSION_FROM", 2)


async def create(admin, *topics, partitions=1):
    """Create topics, which may have been deleted just now."""
    for topic in topics:
        while (await admin.create_topics([NewTopic(topic, partitions, 1)])).topic_errors[0][1]:
            await asyncio.sleep(0.02)


async def publish(bus, topic, *payloads):
    for payload in payloads:
        await bus.publish(topic, payload)


async def received(messages, count):
    return sorted([(message.topic, message.payload) for message in await take(messages, count)])


async def receive_until(messages, topic, payload):
    """Skip the messages before one: what was not yet acknowledged is delivered again after a rebalance."""
    async with asyncio.timeout(20):
        while (message := await anext(messages)).topic != topic or message.payload != payload:
            pass


def read_topics(messages):
    return {where.topic for where in messages._at_broker.partitions}


@GROUPS
async def test_one_consumer_reads_all_topics_of_a_list_and_of_a_pattern(kafka, topic, group_id):
    names = [f"{topic}.cam.{number}" for number in range(30)]
    async with kafka.connect(**ONE) as bus:
        async with bus.subscribe([f"{topic}.lidar", *names], group_id=group_id) as messages:  # they are created
            await asyncio.gather(*(bus.publish(name, name.encode()) for name in names))
            assert await received(messages, 30) == sorted((name, name.encode()) for name in names)
            assert len(messages._at_broker.client._conns) == (2 if group_id else 1)
            assert messages.stats.topics[names[0]].received == 1
            assert messages.stats.topics[f"{topic}.lidar"].received == 0
        async with bus.subscribe(
            [f"{topic}.cam.*", f"{topic}.>", names[0]], group_id=f"{group_id}2" if group_id else None
        ) as m:
            await publish(bus, names[0], b"a")
            await publish(bus, f"{topic}.lidar", b"b")
            assert await received(m, 2) == [(names[0], b"a"), (f"{topic}.lidar", b"b")]
            assert not m.stats.queued


@GROUPS
async def test_a_topic_that_matches_later_is_read_from_its_beginning(kafka, topic, group_id):
    """Whatever ``start`` says, which holds for the topics that exist; a pattern that matches nothing creates nothing."""
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:
        async with bus.subscribe(f"{topic}.*", group_id=group_id) as messages:
            assert not read_topics(messages)
            await create(admin, f"{topic}.a")
            await publish(bus, f"{topic}.a", b"0", b"1")
            assert await received(messages, 2) == [(f"{topic}.a", b"0"), (f"{topic}.a", b"1")]
            assert f"{topic}.x" not in await admin.list_topics()
        if group_id:  # while no member runs
            await publish(bus, f"{topic}.b", b"2")
            async with bus.subscribe(f"{topic}.*", group_id=group_id) as messages:
                await receive_until(messages, f"{topic}.b", b"2")


@GROUPS
@pytest.mark.parametrize("start", ["latest", "earliest", "mapping"])
async def test_the_topics_that_exist_start_as_the_subscription_says(kafka, topic, group_id, start):
    names = [f"{topic}.a", f"{topic}.b"]
    async with kafka.connect(**ONE) as bus:
        for name in names:
            await publish(bus, name, b"0", b"1")
        entries = names if start == "mapping" else f"{topic}.>"
        where = {(f"{topic}.a", 0): 1} if start == "mapping" else start
        async with bus.subscribe(entries, group_id=group_id, start=where) as messages:
            await asyncio.gather(*(bus.publish(name, b"2") for name in names))
            old = {
                "latest": [],
                "earliest": [(name, p) for name in names for p in (b"0", b"1")],
                "mapping": [(names[0], b"1")],
            }
            assert await received(messages, 2 + len(old[start])) == sorted(
                [*old[start], *((name, b"2") for name in names)]
            )


async def test_a_topic_that_is_added_to_the_list_of_a_group_starts_as_the_subscription_says(kafka, topic):
    """The committed offsets of the other topic hold; so do those of the new one, once it was read."""
    async with kafka.connect(**ONE) as bus:
        await publish(bus, f"{topic}.b", b"old")
        async with bus.subscribe(f"{topic}.a", group_id="g"):
            pass
        await publish(bus, f"{topic}.a", b"0")
        async with bus.subscribe([f"{topic}.a", f"{topic}.b"], group_id="g") as messages:
            assert await received(messages, 1) == [(f"{topic}.a", b"0")]
        await publish(bus, f"{topic}.b", b"1")
        async with bus.subscribe([f"{topic}.a", f"{topic}.b"], group_id="g", start="earliest") as messages:
            assert (f"{topic}.b", b"1") in await received(messages, 1 + 1)


async def test_a_list_with_a_missing_topic_that_must_not_be_created_names_it(kafka, topic):
    async with administering(kafka) as admin, kafka.connect(MSIGHT_KAFKA_CREATE_TOPICS="false") as bus:
        await create(admin, f"{topic}.a")
        with pytest.raises(TopicError, match=f"'{topic}.b' does not exist"):
            async with bus.subscribe([f"{topic}.a", f"{topic}.b"]):
                pass
    async with kafka.connect() as bus:
        with pytest.raises(TopicError, match="collides"):
            async with bus.subscribe([f"{topic}.c.d", f"{topic}.c_d"]):
                pass
        with pytest.raises(ValueError, match=f"partition 9; topic '{topic}.a' has 1"):
            async with bus.subscribe([f"{topic}.a", f"{topic}.b"], start={(f"{topic}.a", 9): 0}):
                pass


@GROUPS
async def test_reserved_dead_letter_and_invalid_names_are_not_read(kafka, topic, group_id, caplog):
    others = [f"_{topic}.x", f"{topic}.x.dead", f"{topic}..x", f"{topic}.x."]
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:
        await create(admin, *others, f"{topic}.x")
        async with bus.subscribe(">", group_id=group_id and f"{topic}.g") as messages:
            await until(lambda: f"{topic}.x" in read_topics(messages))
            assert not read_topics(messages) & {*others, "__consumer_offsets"}
            await until(lambda: caplog.text.count(f"'{topic}..x' matches > and is not read: ") == 1)
        assert f"'{topic}..x' matches > and is not read: '{topic}..x' is not a valid topic" in caplog.text


@GROUPS
async def test_a_topic_that_is_created_again_is_read_from_its_beginning_and_the_others_go_on(kafka, topic, group_id):
    """A topic that was given by name, and one that a pattern matches. The gap names the topic."""
    events: list = []
    async with administering(kafka) as admin, kafka.connect(events=events, **ONE) as bus:
        await create(admin, f"{topic}.named", f"{topic}.m.a", f"{topic}.m.b")
        async with bus.subscribe([f"{topic}.named", f"{topic}.m.*"], group_id=group_id) as messages:
            for name in ("named", "m.a", "m.b"):
                await publish(bus, f"{topic}.{name}", b"0")
            await received(messages, 3)
            for name in (f"{topic}.named", f"{topic}.m.a"):
                await admin.delete_topics([name])
                at_broker = messages._at_broker
                await until(lambda: not at_broker.topics.exists(name))  # noqa: B023 - called at once
                await publish(bus, f"{topic}.m.b", b"1")
                await receive_until(messages, f"{topic}.m.b", b"1")
                await create(admin, name)
                async with kafka.connect() as other:
                    await publish(other, name, b"2")
                await receive_until(messages, name, b"2")
                await until(lambda: messages.stats.lag == 0)
    assert [event for event in events if isinstance(event, Gap)] == [
        Gap(f"{topic}.named", None, "retention"),
        Gap(f"{topic}.m.a", None, "retention"),
    ]


@GROUPS
async def test_a_topic_that_is_deleted_before_its_start_is_known_delays_no_other(kafka, topic, group_id, monkeypatch):
    """Entering does not fail, and the topics found with it are read."""
    monkeypatch.setattr(start_offsets, "_OMITTED_AFTER", 0.3)
    resolve = consumer.resolve
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:

        async def delete_first(client, partitions, *arguments):
            doomed = {where.topic for where in partitions if where.topic.endswith("gone")}
            await admin.delete_topics([*doomed & set(await admin.list_topics())])
            return await resolve(client, partitions, *arguments)

        monkeypatch.setattr(consumer, "resolve", delete_first)
        admin.waits = False
        await create(admin, f"{topic}.a.gone", f"{topic}.b")
        async with asyncio.timeout(25), bus.subscribe(f"{topic}.>", group_id=group_id) as messages:
            await publish(bus, f"{topic}.b", b"0")
            assert await received(messages, 1) == [(f"{topic}.b", b"0")]
            await create(admin, f"{topic}.c.gone", f"{topic}.d")
            await publish(bus, f"{topic}.d", b"1")
            await receive_until(messages, f"{topic}.d", b"1")
            monkeypatch.setattr(consumer, "resolve", resolve)
            await create(admin, f"{topic}.c.gone")
            await publish(bus, f"{topic}.c.gone", b"2")
            await receive_until(messages, f"{topic}.c.gone", b"2")


async def test_a_topic_that_is_created_again_is_read_from_its_beginning_if_the_broker_fails_then(
    kafka, topic, monkeypatch
):
    failed = asyncio.Event()
    resolve = consumer.resolve
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:
        await create(admin, f"{topic}.a")
        async with bus.subscribe(f"{topic}.*") as messages:
            await publish(bus, f"{topic}.a", b"0", b"1", b"2")
            await take(messages, 3)

            async def fail_once(*arguments):
                monkeypatch.setattr(consumer, "resolve", resolve)
                failed.set()
                raise KafkaConnectionError("in a test")

            monkeypatch.setattr(consumer, "resolve", fail_once)
            await admin.delete_topics([f"{topic}.a"])
            await create(admin, f"{topic}.a")
            await failed.wait()
            await publish(bus, f"{topic}.a", *[b"%d" % number for number in range(5)])
            assert [message.payload for message in await take(messages, 5)] == [b"%d" % number for number in range(5)]


async def test_a_fetch_session_that_the_broker_has_forgotten_is_begun_again(kafka, topic, caplog):
    """Only the partitions with news are in a response; the broker keeps a limited number of sessions."""
    names = [f"{topic}.{number}" for number in range(5)]
    async with kafka.connect(**ONE) as bus, bus.subscribe(names) as messages:
        client = messages._at_broker.client
        original, requests, answers = client.send, [], []
        forged: list = []

        async def watched(node, request, **how):
            if not isinstance(request, FetchRequest):
                return await original(node, request, **how)
            if forged:
                request._session = forged.pop()
            requests.append(request._session)
            answers.append(await original(node, request, **how))
            return answers[-1]

        client.send = watched
        for code in (0, 70, 71):  # FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH
            if code:
                forged.append((1 if code == 70 else answers[-1].session, 7000))
            for _ in range(3):
                await publish(bus, names[3], b"x")
                assert await received(messages, 1) == [(names[3], b"x")]
            assert code in {answer.code for answer in answers}
        assert any(epoch > 1 and len(answer) == 1 for (_, epoch), answer in zip(requests, answers, strict=False))
    assert "failed" not in caplog.text


async def test_a_fetch_that_the_broker_did_not_receive_begins_another_session(kafka, topic):
    """The broker would go on at the positions that it remembers, which the lost request moved."""
    names = [f"{topic}.{number}" for number in range(5)]
    async with kafka.connect(**ONE) as bus, bus.subscribe(names) as messages:
        client = messages._at_broker.client
        original, lost, after = client.send, [], []

        async def losing(node, request, **how):
            if isinstance(request, FetchRequest):
                if not lost and request._session[1] > 0 and request._offsets:
                    lost.append(request)
                    raise KafkaConnectionError("lost by the test")
                if lost:
                    after.append((request._session[1], dict(request._offsets)))
            return await original(node, request, **how)

        client.send = losing
        for number in range(3):
            await publish(bus, names[3], b"%d" % number)
            assert await received(messages, 1) == [(names[3], b"%d" % number)]
        (request,) = lost
        epoch, offsets = after[0]
        assert (epoch, len(offsets)) == (0, 5)
        assert offsets | request._offsets == offsets
        assert messages.stats.received == 3


@GROUPS
async def test_partitions_that_are_added_to_one_of_the_topics_are_read(kafka, topic, group_id):
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:
        await create(admin, f"{topic}.a", f"{topic}.b")
        async with bus.subscribe(f"{topic}.*", group_id=group_id) as messages:
            await Operator(kafka).add_partitions(f"{topic}.b", 3)
            async with kafka.connect() as other:
                for number in range(20):
                    await other.publish(f"{topic}.b", b"%d" % number, key=str(number))
            found = await take(messages, 20)
            assert {message.position[0] for message in found} == {0, 1, 2}


async def test_a_broker_without_topic_ids(kafka, topic, monkeypatch):
    """Brokers before Kafka 2.8."""
    monkeypatch.setattr(TopicIdentitiesRequest._CLASSES[0], "API_VERSION", 99)
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:
        async with bus.subscribe([f"{topic}.list", f"{topic}.m.*"]) as messages:
            await create(admin, f"{topic}.m.a")
            await publish(bus, f"{topic}.m.a", b"0")
            await publish(bus, f"{topic}.list", b"1")
            assert await received(messages, 2) == [(f"{topic}.list", b"1"), (f"{topic}.m.a", b"0")]


async def test_deleted_topics_that_a_pattern_matched_are_forgotten(kafka, topic, monkeypatch, caplog):
    monkeypatch.setattr(selected_topics, "_REMEMBERED", 1)
    async with administering(kafka) as admin, kafka.connect(**ONE) as bus:
        names = [f"{topic}.{number}" for number in range(3)]
        await create(admin, *names)
        async with bus.subscribe(f"{topic}.*") as messages:
            await admin.delete_topics(names)
            await until(lambda: len(messages._at_broker.topics._topics) == 1)
            await until(lambda: len(messages._at_broker.partitions) == 1)
            assert caplog.text.count("deleted; no messages until created again") == 1
            assert f"3 topics were deleted; no messages until created again: {', '.join(names)}" in caplog.text
            await create(admin, names[0])
            async with kafka.connect() as other:
                await publish(other, names[0], b"new")
            assert await received(messages, 1) == [(names[0], b"new")]


async def test_the_latest_of_each_topic_are_read(kafka, topic):
    """``latest(n)``: n before the end of each partition; the rest is skipped, for each topic."""
    names = [f"{topic}.a", f"{topic}.b"]
    async with kafka.connect(**ONE) as bus:
        async with bus.subscribe(names, group_id="g"):
            pass
        for name in names:
            await publish(bus, name, *(b"%d" % number for number in range(5)))
        async with bus.subscribe(names, group_id="g", queue=QueuePolicy.latest(2)) as messages:
            assert await received(messages, 4) == [(name, payload) for name in names for payload in (b"3", b"4")]
            assert {name: topic.dropped["skipped"] for name, topic in messages.stats.topics.items()} == dict.fromkeys(
                names, 3
            )


@pytest.mark.faults
@GROUPS
async def test_a_topic_that_may_not_be_read_is_left_out_of_a_pattern_and_fails_a_list(group_id, caplog):
    with own_broker("kafka", AUTHORIZING) as (_, kafka):
        operator = Operator(kafka)
        async with kafka.connect(**ONE) as bus:
            for name in ("t.a", "t.b", "t.c"):
                await publish(bus, name, b"0")
            await operator.allow("topic", "t.b", "describe")
            await operator.deny("topic", "t.c", "describe")
            async with bus.subscribe("t.*", group_id=group_id, start="earliest") as messages:
                assert await received(messages, 1) == [("t.a", b"0")]
                await until(lambda: read_topics(messages) == {"t.a"})
                await publish(bus, "t.d", b"0")
                for operation in ("create", "describe", "write"):
                    await operator.allow("topic", "t.e", operation)
                await publish(bus, "t.e", b"0")
                assert await received(messages, 1) == [("t.d", b"0")]
                await until(lambda: caplog.text.count("and is not read: ") == 2)
            for denied, *others in (["t.b"], ["t.c"], ["t.b", "t.*"]):
                with pytest.raises(AuthenticationError, match=denied):
                    async with bus.subscribe(
                        ["t.a", denied, *others], group_id=group_id and f"{denied}.g{len(others)}"
                    ) as messages:
                        await take(messages, 1)
        operator.close()


@pytest.mark.faults
@GROUPS
async def test_a_topic_of_a_pattern_that_may_no_longer_be_read_is_left_out_at_once(group_id, caplog):
    with own_broker("kafka", AUTHORIZING) as (_, kafka):
        operator = Operator(kafka)
        async with kafka.connect(**ONE) as bus:
            for name in ("t.a", "t.b"):
                await publish(bus, name, b"0")
            async with bus.subscribe("t.*", group_id=group_id, start="earliest") as messages:
                assert await received(messages, 2) == [("t.a", b"0"), ("t.b", b"0")]
                await operator.deny("topic", "t.b", "read")
                await until(lambda: read_topics(messages) == {"t.a"})
                await publish(bus, "t.a", b"1")
                await receive_until(messages, "t.a", b"1")
            assert caplog.text.count("and is not read: ") == 1
        operator.close()


# -- groups


@pytest.mark.parametrize("partitions", [1, 2, 4, 5])
@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_the_partitions_of_each_number_and_of_each_topic_are_shared(partitions, members):
    cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(partitions)))
    names = [f"t{number}" for number in range(12)]
    group = {f"m{number}": SimpleNamespace(subscription=names) for number in range(members)}
    assignment = MarkingAssignor.assign(cluster, group)
    owned = [
        [(topic, number) for topic, numbers in each.assignment for number in numbers] for each in assignment.values()
    ]
    assert sorted(chain(*owned)) == [(name, number) for name in sorted(names) for number in range(partitions)]
    assert len(set(map(len, owned))) == 1
    for number in range(partitions):
        assert all(any(each == number for _, each in own) for own in owned)
    for name in names:
        assert sum(any(topic == name for topic, _ in own) for own in owned) == min(partitions, members)


class Readers:
    """Members of a group that read until they leave, and what they have read."""

    def __init__(self, entries):
        self.read = Counter()
        self.members = []
        self._entries = entries

    @asynccontextmanager
    async def member(self, bus):
        entered = asyncio.Event()
        task = asyncio.create_task(self._read(bus, entered))
        try:
            await asyncio.wait((task, asyncio.ensure_future(entered.wait())), return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled(), task.exception()

    async def _read(self, bus, entered):
        async with bus.subscribe(self._entries, group_id="g") as messages:
            self.members.append(messages)
            entered.set()
            try:
                async for message in messages:
                    self.read[message.topic, message.payload] += 1
            finally:
                self.members.remove(messages)

    def owned(self):
        """The number of topics of each member, if each topic has one reader."""
        topics = [read_topics(member) for member in self.members]
        return sorted(map(len, topics)) if len(set().union(*topics)) == sum(map(len, topics)) else []


@pytest.mark.parametrize("kind", ["list", "pattern"])
async def test_members_share_topics_of_one_partition_and_lose_none_while_members_and_topics_come_and_go(
    kafka, topic, kind
):
    names = [f"{topic}.{number}" for number in range(9)]
    readers = Readers(names if kind == "list" else f"{topic}.*")
    published: set = set()

    async def load(bus, name):
        for number in range(100000):
            payload = b"%d" % number
            await bus.publish(name, payload)
            published.add((name, payload))
            await asyncio.sleep(0.02)

    async with administering(kafka) as admin, kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="3", **ONE) as bus:
        await create(admin, *names)
        async with readers.member(bus), AsyncExitStack() as second:
            loads = [asyncio.create_task(load(bus, name)) for name in names]
            await second.enter_async_context(readers.member(bus))
            await until(lambda: readers.owned() == [4, 5])
            async with readers.member(bus):
                await until(lambda: readers.owned() == [3, 3, 3])
                if kind == "pattern":
                    names += [f"{topic}.new.x", f"{topic}.9", f"{topic}.10"]
                    loads += [asyncio.create_task(load(bus, name)) for name in names[-2:]]
                    await until(lambda: readers.owned() == [3, 4, 4])
                    await admin.delete_topics([f"{topic}.new.x"])
            await until(lambda: readers.owned() == ([5, 6] if kind == "pattern" else [4, 5]))
            await second.aclose()
            await until(lambda: readers.owned() == [11 if kind == "pattern" else 9])
            for task in loads:
                task.cancel()
            await asyncio.wait(loads)
            await until(lambda: published <= readers.read.keys())


async def test_a_member_with_another_client_shares_the_topics_of_a_list(kafka, topic):
    names = [f"{topic}.{number}" for number in range(6)]
    readers = Readers(names)
    async with kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="3", **ONE) as bus, readers.member(bus):
        other = Consumer({**options(kafka), **CLASSIC, "group.id": "g", "auto.offset.reset": "earliest"})
        other.subscribe(names)
        found = set()

        def poll():
            message = other.poll(0.05)
            if message is not None and message.error() is None:
                found.add((message.topic(), message.value()))
            return len(other.assignment())

        async with asyncio.timeout(30):
            while await asyncio.to_thread(poll) != 3:
                pass
        await until(lambda: readers.owned() == [3])
        await asyncio.gather(*(bus.publish(name, b"x") for name in names))
        async with asyncio.timeout(20):
            while len(found | readers.read.keys()) < 6:
                await asyncio.to_thread(poll)
        assert len(found) == 3
        await asyncio.to_thread(other.close)
        await until(lambda: readers.owned() == [6])
