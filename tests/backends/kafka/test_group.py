"""Members of a consumer group: partitions that are added, and errors in callbacks of aiokafka."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, KafkaTimeoutError

from msight_bus import AuthenticationError, BusError, QueuePolicy
from msight_bus.backends.kafka import consumer, group, partition
from msight_bus.backends.kafka.aiokafka_compat import Client, FetchRequest
from msight_bus.backends.kafka.liveness import watch
from msight_bus.events import Disconnected, Gap, Reconnected
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering, make
from tests.support.kafka_records import Rec, batch_of, raw_producer
from tests.support.receiving import numbers, take
from tests.support.rig import until

KEYS = 60
"""They reach each of 8 partitions."""


class Group:
    """The members of one group, what each has read, and what was published."""

    def __init__(self, kafka, topic, group_id=GROUP):
        self.subscriptions = []
        self.read = []
        self.published = set()
        self._kafka = kafka
        self._topic = topic
        self._group_id = group_id

    async def member(self, bus):
        """Read until cancelled."""
        read = []
        async with bus.subscribe(self._topic, group_id=self._group_id, start="earliest") as messages:
            self.subscriptions.append(messages)
            self.read.append(read)
            async for message in messages:
                read.append((message.position[0], int(message.payload)))

    @asynccontextmanager
    async def members(self, bus, count):
        """Members that each read."""
        async with asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(self.member(bus)) for _ in range(count)]
            yield
            for task in reading:
                task.cancel()

    @asynccontextmanager
    async def load(self):
        """Publish until the end, as a publisher that has just looked up the topic's partitions."""

        async def publish():
            async with self._kafka.connect() as bus:
                while not stopped.is_set():
                    number = len(self.published)
                    await bus.publish(self._topic, b"%d" % number, key=f"cam{number % KEYS}")
                    self.published.add(number)
                    await asyncio.sleep(0.002)

        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            yield
            stopped.set()

    async def each_reads(self, within=20.0):
        """Wait until every member has read more than it has now."""
        before = [len(read) for read in self.read]
        await until(
            lambda: all(len(read) > count for read, count in zip(self.read, before, strict=True)),
            within=within,
        )

    @property
    def partitions(self):
        """Where messages were read."""
        return {partition for read in self.read for partition, _ in read}

    @property
    def missing(self):
        """What was published and not read."""
        return self.published - {number for read in self.read for _, number in read}


async def add_partitions(kafka, *topics, total):
    async with administering(kafka) as admin:
        await admin.create_partitions({topic: NewPartitions(total) for topic in topics})
        while {len(entry["partitions"]) for entry in await admin.describe_topics(list(topics))} != {total}:
            await asyncio.sleep(0.02)


def coordinator(messages):
    return messages._at_broker.member


def generations(members):
    return [coordinator(messages).generation for messages in members]


# -- partitions are taken away while a fetch is under way


async def read_by_both(one, two, count):
    """What two members read until they have read ``count`` messages; nothing was handed out before."""
    read = []
    await until(
        lambda: read.extend(message.payload for each in (one, two) if (message := each.take())) or len(read) >= count
    )
    return sorted(read)


async def test_an_answer_that_comes_after_a_rebalance_delivers_nothing(kafka, topic, monkeypatch):
    held, released, original = asyncio.Event(), asyncio.Event(), Client.send

    async def late(self, node, request, **options):
        answer = await original(self, node, request, **options)
        if isinstance(request, FetchRequest) and any(part.data for part in answer):
            held.set()
            await released.wait()
        return answer

    monkeypatch.setattr(Client, "send", late)
    await make(kafka, topic, 2)
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as one:
        sent = [b"%d" % number for number in range(20)]
        await asyncio.gather(*(bus.publish(topic, payload, key=payload.decode()) for payload in sent))
        await held.wait()
        async with bus.subscribe(topic, group_id=GROUP) as two:
            released.set()
            await until(lambda: one.stats.lag is not None and two.stats.lag is not None)
            assert await read_by_both(one, two, 20) == sorted(sent)


async def test_what_is_done_is_committed_before_its_partition_is_taken_away(kafka, topic):
    await make(kafka, topic, 2)
    async with kafka.connect(MSIGHT_KAFKA_COMMIT_INTERVAL="3600") as bus:
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as one:
            await asyncio.gather(*(bus.publish(topic, b"", key=f"{number}") for number in range(20)))
            for message in await take(one, 20):
                await message.ack()
            async with bus.subscribe(topic, group_id=GROUP) as two:
                await until(lambda: two.stats.lag == 0)
                assert (one.stats.received, two.stats.received) == (20, 0)


async def test_a_fetch_that_is_read_in_parts_ends_with_a_rebalance(kafka, topic):
    await make(kafka, topic, 2)
    queue = QueuePolicy.block(10)
    async with kafka.connect() as bus:
        sent = [b"%d" % number for number in range(200)]
        await asyncio.gather(*(bus.publish(topic, payload, key=payload.decode()) for payload in sent))
        async with bus.subscribe(topic, group_id=GROUP, start="earliest", queue=queue) as one:
            await until(lambda: one.stats.queued)
            async with bus.subscribe(topic, group_id=GROUP, start="earliest", queue=queue) as two:
                await until(lambda: one.stats.lag is not None and two.stats.lag is not None)
                assert await read_by_both(one, two, 200) == sorted(sent)


# -- partitions are added


@pytest.mark.parametrize("count", [2, 3])
async def test_partitions_that_only_the_leader_knows_of_are_read_and_nothing_is_lost(kafka, topic, count):
    """The leader assigns partitions that the metadata of other members does not have yet."""
    members = Group(kafka, topic)
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="3") as bus:
        await bus.publish(topic, b"0", key="cam0")
        members.published.add(0)
        async with members.members(bus, count):
            await until(lambda: len(members.subscriptions) == count)
            async with members.load():
                await members.each_reads()
                await add_partitions(kafka, topic, total=8)
                before = generations(members.subscriptions)
                for messages in members.subscriptions:
                    if coordinator(messages)._group_subscription is not None:
                        await messages._at_broker.client.force_metadata_update()
                await until(lambda: min(generations(members.subscriptions)) > max(before))
            async with members.load():  # a publisher that knows the new partitions
                await members.each_reads()
                await until(lambda: members.partitions == set(range(8)))
                await members.each_reads()
            await until(lambda: not members.missing)


async def test_added_partitions_are_found_at_the_next_check_of_the_topic(kafka, topic, monkeypatch):
    """Metadata is renewed every 30 s only."""
    monkeypatch.setattr(consumer, "_LOOK_EVERY", 0.3)
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="1") as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        await add_partitions(kafka, topic, total=4)
        await until(lambda: {where.partition for where in messages._at_broker.partitions} == set(range(4)), within=15)


@pytest.mark.faults
@pytest.mark.timeout(180)
async def test_partitions_added_to_many_groups_are_read_and_nothing_is_lost(kafka, topic):
    """Members that joined one after the other renew their metadata at different times, the leader first."""
    topics = [f"{topic}.{i}" for i in range(6)]
    groups = [Group(kafka, each) for each in topics]
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="4") as bus, asyncio.TaskGroup() as tasks:
        members = []
        for each in topics:
            await bus.publish(each, b"0", key="cam0")
        for number in range(3):
            for i, each in enumerate(groups):
                if number < 2 + i % 2:
                    members.append(tasks.create_task(each.member(bus)))
                    await until(lambda each=each, number=number: len(each.subscriptions) > number)
        await add_partitions(kafka, *topics, total=8)
        async with AsyncExitStack() as loads:
            for each in groups:
                await loads.enter_async_context(each.load())
            await until(lambda: all(each.partitions == set(range(8)) for each in groups), within=90)
            await asyncio.gather(*(each.each_reads() for each in groups))
        await until(lambda: not any(each.missing for each in groups))
        for member in members:
            member.cancel()


# -- an error in a rebalance listener


@pytest.fixture
def failing(monkeypatch):
    """Make one of our own functions that a listener calls raise an error, so many times."""

    def fail(name, error, times=1_000_000):
        left = times
        original = getattr(group.GroupConsumer, name)

        def failing(self, *arguments):
            nonlocal left
            if left:
                left -= 1
                raise error
            return original(self, *arguments)

        monkeypatch.setattr(group.GroupConsumer, name, failing)

    return fail


@pytest.mark.parametrize("name", ["_starts", "_partition", "commit"])
async def test_an_unexpected_error_in_a_listener_fails_the_subscription(kafka, topic, failing, name):
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        await bus.publish(topic, b"0")
        assert await numbers(messages, 1) == [0]
        failing(name, KeyError("a bug"), times=1)
        coordinator(messages).request_rejoin()
        with pytest.raises(BusError, match="a bug"):
            await take(messages, 1)


async def test_an_unexpected_error_in_the_first_assignment_fails_subscribing(kafka, topic, failing):
    failing("_starts", KeyError("a bug"))
    async with kafka.connect() as bus:
        with pytest.raises(BusError, match="a bug"):
            async with bus.subscribe(topic, group_id=GROUP):
                pass


async def test_a_refusal_in_a_listener_fails_the_subscription(kafka, topic, failing):
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        failing("_starts", GroupAuthorizationFailedError(GROUP))
        coordinator(messages).request_rejoin()
        with pytest.raises(AuthenticationError):
            await take(messages, 1)


@pytest.mark.parametrize(
    "error", [KafkaError("later"), OSError("later"), TimeoutError()], ids=["kafka", "os", "timeout"]
)
async def test_a_passing_error_in_a_listener_lets_the_member_join_again(kafka, topic, failing, error):
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        failing("_starts", error, times=2)
        coordinator(messages).request_rejoin()
        await bus.publish(topic, b"0")
        assert await numbers(messages, 1) == [0]


async def test_the_partitions_of_peers_are_those_of_all_members_that_run_this_library(kafka, topic):
    await make(kafka, topic, 2)
    every = {TopicPartition(topic, 0), TopicPartition(topic, 1)}
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        assert await coordinator(messages).partitions_of_peers() == every


# -- an error in aiokafka's own tasks


async def test_a_failed_assignment_by_the_leader_is_made_again(kafka, topic):
    """aiokafka waits until somebody asks for the error, and nobody fetches during a rebalance."""
    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        original = coordinator(messages)._perform_assignment

        async def fail_once(response):
            coordinator(messages)._perform_assignment = original
            raise KeyError("a bug")

        coordinator(messages)._perform_assignment = fail_once
        coordinator(messages).request_rejoin()
        await until(lambda: coordinator(messages)._perform_assignment == original)
        await bus.publish(topic, b"0")
        assert await numbers(messages, 1) == [0]


async def test_a_heartbeat_that_ended_with_an_error_begins_again(kafka, topic):
    """The member would leave the group after the session timeout, and hear nothing of it."""
    async with kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="2") as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            task = coordinator(messages)._heartbeat_task
            original = coordinator(messages)._do_heartbeat

            async def fail_once():
                coordinator(messages)._do_heartbeat = original
                raise KafkaError("Unexpected exception in heartbeat task")

            coordinator(messages)._do_heartbeat = fail_once
            await until(lambda: coordinator(messages)._heartbeat_task not in (None, task))
            await bus.publish(topic, b"0")
            assert await numbers(messages, 1) == [0]
            assert not coordinator(messages)._heartbeat_task.done()


@pytest.mark.parametrize("group_id", [GROUP, None], ids=["group", "alone"])
async def test_a_subscription_whose_fetcher_ended_fails(kafka, topic, monkeypatch, group_id):
    def fail(*_):
        raise RuntimeError("a bug")

    async with kafka.connect() as bus, bus.subscribe(topic, group_id=group_id) as messages:
        monkeypatch.setattr(partition, "PartitionReader", fail)
        await bus.publish(topic, b"0")
        with pytest.raises(BusError, match="a bug|data retrieval"):
            await take(messages, 1)


@pytest.mark.parametrize("group_id", [GROUP, None], ids=["group", "alone"])
async def test_a_subscription_whose_metadata_is_renewed_no_longer_fails(kafka, topic, group_id):
    def fail(_):
        raise RuntimeError("a bug")

    async with kafka.connect() as bus, bus.subscribe(topic, group_id=group_id) as messages:
        kafka_client = messages._at_broker.client
        kafka_client.cluster.add_listener(fail)
        kafka_client.force_metadata_update()
        with pytest.raises(BusError, match="a bug"):
            await take(messages, 1)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_subscription_whose_coordination_ended_fails(kafka, topic, cancelled):
    async def fail(*_):
        raise asyncio.CancelledError if cancelled else RuntimeError("a bug")

    async with kafka.connect() as bus, bus.subscribe(topic, group_id=GROUP) as messages:
        coordinator(messages).ensure_active_group = fail
        coordinator(messages).request_rejoin()
        with pytest.raises(BusError):
            await take(messages, 1)


async def test_the_buss_client_renews_its_metadata_after_an_error(kafka, topic):
    def fail(_):
        failed.set()
        raise RuntimeError("a bug")

    failed = asyncio.Event()
    async with kafka.connect(MSIGHT_PING_INTERVAL="0.05") as bus:
        await bus.publish(topic, b"0")
        client = bus.core.backend._client
        client.cluster.add_listener(fail)
        client.force_metadata_update()
        await failed.wait()
        client.cluster.remove_listener(fail)
        async with asyncio.timeout(20):
            assert await client.update_metadata()
        await bus.publish(f"{topic}.other", b"1")


async def test_a_client_whose_metadata_is_renewed_no_longer_closes_its_connections(kafka):
    """A connection that is left open is a ResourceWarning."""

    def fail(_):
        failed.set()
        raise RuntimeError("a bug")

    failed = asyncio.Event()
    async with kafka.connect() as bus:
        client = bus.core.backend._client
        client.cluster.add_listener(fail)
        client.force_metadata_update()
        await failed.wait()


# -- a broker that does not answer


async def test_a_retention_gap_that_cannot_be_measured_yet_is_measured_later(kafka, topic, monkeypatch):
    events: list = []
    original = consumer.list_offsets
    answers = iter([KafkaTimeoutError("frozen"), OSError("away")])

    async def measure(*arguments):
        if error := next(answers, None):
            raise error
        return await original(*arguments)

    async with kafka.connect(events=events) as bus:
        async with bus.publisher(topic) as publisher:
            for i in range(10):
                await publisher.send(b"%d" % i)
        async with bus.subscribe(topic, start="earliest") as messages:
            partition = (await take(messages, 1))[0].position[0]
        async with administering(kafka) as admin:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=6)})
        monkeypatch.setattr(consumer, "list_offsets", measure)
        async with bus.subscribe(topic, start={partition: 1}) as messages:
            assert await numbers(messages, 4) == [6, 7, 8, 9]
    assert events == [Gap(topic, 5, "retention", at_most=True)]
    assert next(answers, None) is None


@pytest.mark.parametrize("bad", ["ask", "probe"])
async def test_the_watch_goes_on_after_an_error_nobody_thought_of(kafka, bad):
    limits = kafka.settings(MSIGHT_PING_INTERVAL="0.01", MSIGHT_RECONNECT_MAX="0.05").limits
    events, answers = [], iter([KeyError("a bug") if bad == "ask" else KafkaError("away")])

    async def ask():
        if error := next(answers, None):
            raise error

    async def probe():
        if bad == "probe":
            raise KeyError("a bug")

    watching = asyncio.create_task(watch(ask, probe, limits, lambda event: events.append(type(event)), lambda _: None))
    await until(lambda: watching.done() or events == [Disconnected, Reconnected])
    assert not watching.done()
    watching.cancel()
    await asyncio.wait((watching,))


@pytest.mark.parametrize("spread", [False, True])
async def test_a_member_whose_partitions_receive_nothing_while_others_do_is_told_once(
    kafka, topic, monkeypatch, caplog, spread
):
    monkeypatch.setattr(group, "_COMPARE_EVERY", 0.1)
    list_offsets = group.list_offsets
    compared = Counter()

    async def compare(client, *arguments):
        found = await list_offsets(client, *arguments)
        compared[client] += 1
        return found

    monkeypatch.setattr(group, "list_offsets", compare)
    async with kafka.connect(MSIGHT_KAFKA_PARTITIONS="2") as bus:
        async with bus.subscribe(topic, group_id=GROUP) as one:
            async with bus.subscribe(topic, group_id=GROUP) as two:
                stop = asyncio.Event()

                async def publish():
                    async with bus.publisher(topic, spread=spread) as publisher:
                        while not stop.is_set():
                            for _ in range(10):
                                await publisher.send(b"x")
                            await asyncio.sleep(0.01)

                publishing = asyncio.create_task(publish())
                consuming = [asyncio.create_task(consume(messages)) for messages in (one, two)]
                try:
                    async with asyncio.timeout(20):
                        while not told(caplog):
                            if spread and one.stats.delivered > 500 and two.stats.delivered > 500:
                                break
                            await asyncio.sleep(0.05)
                        compared.clear()
                        await until(lambda: len(compared) == 1 + spread and min(compared.values()) > 4)
                finally:
                    stop.set()
                    await publishing
                    for task in consuming:
                        task.cancel()
                    await asyncio.wait(consuming)
    if spread:
        assert not told(caplog)
    else:
        (line,) = told(caplog)
        for part in ("Group g", topic, "records", "publisher(spread=True)", "MSIGHT_KAFKA_UNKEYED=spread"):
            assert part in line


def told(caplog):
    """The warnings of partitions that receive nothing."""
    return [record.getMessage() for record in caplog.records if "receive nothing" in record.getMessage()]


async def consume(messages):
    async for _ in messages:
        pass


async def test_a_partition_whose_fetch_fails_again_and_again_does_not_hold_up_others(kafka, topic, monkeypatch):
    asked = []

    async def refuse(client, partitions, *rest):
        if partitions[0].partition == 0:
            asked.append(partitions)
            raise KafkaTimeoutError("by the test")
        return await list_offsets(client, partitions, *rest)

    list_offsets = consumer.list_offsets
    monkeypatch.setattr(consumer, "list_offsets", refuse)
    async with administering(kafka) as admin, raw_producer(kafka) as produce, kafka.connect() as bus:
        await admin.create_topics([NewTopic(topic, 2, 1)])
        for partition in (0, 1):
            await produce(topic, batch_of(*[Rec(b"%d" % number) for number in range(3)]), partition)
        await admin.delete_records({TopicPartition(topic, number): RecordsToDelete(2) for number in (0, 1)})
        async with bus.subscribe(topic, start={0: 0, 1: 0}) as messages:
            message = (await take(messages, 1))[0]
            assert (message.position, message.payload) == ((1, 2), b"2")
            assert asked
