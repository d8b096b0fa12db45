"""One batch that fails, or a client that ends, harms no publisher but its own."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, NotEnoughReplicasAfterAppendError
from aiokafka.protocol.admin import CreateAclsRequest

from msight_bus import AuthenticationError, BusError, PublishTimeoutError
from msight_bus.backends.base import BLOCKED
from msight_bus.backends.kafka import producer
from msight_bus.backends.kafka.aiokafka_compat import Client, read_produce
from tests.support.kafka_admin import administering, make
from tests.support.kafka_answers import PRODUCE, changing_answers, of_partition, with_code
from tests.support.kafka_traffic import PAD, Traffic, outcomes, publishing, received
from tests.support.receiving import numbers, take
from tests.support.rig import own_broker, until


async def test_a_refused_batch_harms_no_other_topic(kafka, topic):
    good, bad = f"{topic}.good", f"{topic}.bad"
    await make(kafka, good)
    await make(kafka, bad, **{"cleanup.policy": "compact"})
    async with kafka.connect() as bus:
        await bus.publish(good, b"%08d" % 0)
        for start in (1, 401):
            refused, *others = await outcomes(
                *publishing(bus, bad, [0]), *publishing(bus, good, range(start, start + 400))
            )
            assert isinstance(refused, BusError)
            assert set(others) == {None}
    assert await received(kafka, good) == list(range(801))


async def test_messages_after_a_refused_batch_keep_their_order_on_the_partition(kafka, topic):
    await make(kafka, topic, **{"cleanup.policy": "compact"})
    async with kafka.connect() as bus:
        keys = [None if i % 100 == 50 else "k" for i in range(400)]
        results = await outcomes(
            *(bus.publish(topic, b"%08d" % i + PAD, key=key) for i, key in enumerate(keys)),
        )
        assert await outcomes(*publishing(bus, topic, range(400, 410), key="k")) == [None] * 10
    accepted = [i for i, result in enumerate(results) if result is None]
    assert not {i for i, key in enumerate(keys) if key is None} & set(accepted)
    assert {i // 100 for i in accepted} == {0, 1, 2, 3}
    assert await received(kafka, topic) == [*accepted, *range(400, 410)]


@pytest.mark.faults
async def test_a_partition_that_is_gone_harms_no_other_topic(kafka, topic):
    good, bad = f"{topic}.good", f"{topic}.bad"
    await make(kafka, bad, 8)
    async with kafka.connect(MSIGHT_CONNECT_TIMEOUT="2") as bus:
        keys = [f"k{i}" for i in range(20)]
        assert await outcomes(*(bus.publish(bad, b"", key=key) for key in keys)) == [None] * 20
        async with Traffic(bus, good) as traffic:
            async with administering(kafka) as admin:
                await admin.delete_topics([bad])
                while bad in await admin.list_topics():
                    pass
            await make(kafka, bad)
            async with asyncio.timeout(30):
                results = await outcomes(*(bus.publish(bad, b"", key=key) for key in keys))
                assert {type(result) for result in results} <= {type(None), PublishTimeoutError}
                assert set(await outcomes(*(bus.publish(bad, b"", key=key) for key in keys))) == {None}
            await traffic.moves()
    assert await received(kafka, good) == list(range(traffic.count))


@pytest.mark.parametrize("when", ["writing", "waiting", "answered"])
async def test_a_request_that_fails_unexpectedly_is_sent_again(kafka, topic, monkeypatch, when):
    send_now = Client.send_now
    failing: list[int] = []

    async def fail_later(answer):
        if when == "answered":
            await answer
        raise RuntimeError("nobody expects this")

    def fail(client, node, request):
        if len(failing) == 3:
            return send_now(client, node, request)
        failing.append(node)
        if when == "writing":
            raise RuntimeError("nobody expects this")
        return asyncio.ensure_future(fail_later(send_now(client, node, request)))

    async with kafka.connect() as bus:
        await make(kafka, topic)
        monkeypatch.setattr(Client, "send_now", fail)
        assert set(await outcomes(*publishing(bus, topic, range(200)))) == {None}
        assert len(failing) == 3
    assert await received(kafka, topic) == list(range(200))


async def test_a_batch_that_a_broker_temporarily_refuses_is_logged_once_and_written_once(
    kafka, topic, monkeypatch, caplog
):
    """(librdkafka 1421, kafka-python 1580) NOT_ENOUGH_REPLICAS_AFTER_APPEND: the broker has the batch all the same."""
    refusals = 15

    def refuse(response):
        nonlocal refusals
        refusals -= 1
        produced = read_produce(response)
        if refusals < 0:
            return produced
        return {where: one._replace(code=NotEnoughReplicasAfterAppendError.errno) for where, one in produced.items()}

    monkeypatch.setattr(producer, "read_produce", refuse)
    await make(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"0")
        await bus.publish(topic, b"1")
        assert await numbers(messages, 2) == [0, 1]
    told = [record.getMessage() for record in caplog.records if "Publish refused" in record.getMessage()]
    assert len(told) == 1
    assert "NotEnoughReplicasAfterAppend" in told[0]


async def test_publishing_goes_on_after_an_error_nobody_thought_of(kafka, topic, monkeypatch):
    topics = [f"{topic}.{i}" for i in range(3)]
    for name in topics:
        await make(kafka, name)
    leader = Client.leader
    left = 3

    def fail(client, where):
        nonlocal left
        if left:
            left -= 1
            raise RuntimeError("nobody expects this")
        return leader(client, where)

    async with kafka.connect() as bus:
        assert await outcomes(*(bus.publish(name, b"%08d" % 0) for name in topics)) == [None] * 3
        monkeypatch.setattr(Client, "leader", fail)
        results = await asyncio.gather(*(outcomes(*publishing(bus, name, range(1, 300))) for name in topics))
        assert [set(result) for result in results] == [{None}] * 3
        assert left == 0
    for name in topics:
        assert await received(kafka, name) == list(range(300))


@pytest.mark.faults
async def test_a_topic_that_may_not_be_written_harms_no_other_topic():
    authorizing = [
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found=true",
    ]
    topic, literal, write, deny = 2, 3, 4, 2
    with own_broker("kafka", authorizing) as (_, kafka):
        for name in ("good", "bad"):
            await make(kafka, name)
        async with kafka.connect() as bus:
            await bus.publish("bad", b"%08d" % 0)
            async with Traffic(bus, "good") as traffic:
                async with administering(kafka) as admin:
                    denial = CreateAclsRequest(topic, "bad", literal, "User:ANONYMOUS", "*", write, deny)
                    await admin._client.send(admin._client.get_random_node(), denial)
                while await outcomes(bus.publish("bad", b"%08d" % 1)) == [None]:
                    pass  # the broker applies it soon
                results = await outcomes(*publishing(bus, "bad", range(100)))
                assert {type(result) for result in results} == {AuthenticationError}
                await traffic.moves()
        assert await received(kafka, "good") == list(range(traffic.count))


async def test_an_unknown_outcome_is_reported_and_affects_no_other_topic(kafka, topic):
    good, bad = f"{topic}.good", f"{topic}.bad"
    codes = []

    def change(request, answer):
        if codes and request.kind == PRODUCE and of_partition(answer, bad) >= 0:
            return with_code(answer, bad, codes.pop())
        return answer

    for name in (good, bad):
        await make(kafka, name)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        async with Traffic(bus, good) as traffic:
            await bus.publish(bad, b"%08d" % 0)
            for at in range(2):
                first = 1 + 200 * at
                codes.append(-1)  # UNKNOWN_SERVER_ERROR
                results = await outcomes(*publishing(bus, bad, range(first, first + 200)))
                assert not codes
                lost = [i for i, result in enumerate(results) if result is not None]
                assert lost == list(range(len(lost)))  # the first batch and no other
                assert 0 < len(lost) < 100
                await traffic.moves()
    assert await received(kafka, bad) == list(range(401))  # the broker had what it did not acknowledge
    assert await received(kafka, good) == list(range(traffic.count))


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_batches_in_flight_are_sent_again_without_a_duplicate(kafka, topic, monkeypatch, how):
    send_now = Client.send_now
    hung = []

    def hang_once(client, node, request):
        answer = send_now(client, node, request)
        if hung:
            return answer
        hung.append(asyncio.get_running_loop().create_future())
        return hung[0]

    await make(kafka, topic)
    async with kafka.connect() as bus:
        await bus.publish(topic, b"%08d" % 0)
        monkeypatch.setattr(Client, "send_now", hang_once)
        publishes = [asyncio.ensure_future(one) for one in publishing(bus, topic, range(1, 200))]
        await until(lambda: hung)
        if how == "cancelled":
            hung[0].cancel()
        else:
            hung[0].set_exception(KafkaConnectionError("closed"))
        assert set(await outcomes(*publishes)) == {None}
        await bus.publish(topic, b"%08d" % 200)
    assert await received(kafka, topic) == list(range(201))


async def test_a_topic_that_was_forgotten_goes_on_at_its_sequence_numbers(kafka, topic):
    """The broker refuses what begins anew with the same producer id."""
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS="1") as bus:
        for i in range(6):
            await bus.publish(f"{topic}.{i % 3}", b"%08d" % i)
            await bus.publish(f"{topic}.{i % 3}", b"%08d" % (10 + i))
    for i in range(3):
        assert await received(kafka, f"{topic}.{i}") == [i, 10 + i, 3 + i, 13 + i]


async def test_a_bus_that_forgets_many_topics_takes_another_producer_id(kafka, topic, monkeypatch):
    monkeypatch.setattr(producer, "_MAX_EVICTED", 1)
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS="1") as bus:
        for i in range(12):
            await bus.publish(f"{topic}.{i % 4}", b"%08d" % i)
    for i in range(4):
        assert await received(kafka, f"{topic}.{i}") == [i, 4 + i, 8 + i]


async def test_nobody_cancels_the_acknowledgement_that_others_wait_for(topic, kafka):
    async with kafka.connect() as bus, bus.publisher(topic) as publisher:
        acknowledged = await publisher.send(b"x")

        async def wait() -> None:
            await acknowledged

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
        acknowledged.cancel()
        await bus.publish(topic, b"y")
        await publisher.flush()
        assert await acknowledged is None


async def test_asyncio_does_not_log_the_error_of_a_message_whose_acknowledgement_nobody_waits_for(kafka, topic, caplog):
    """As it does after `asyncio.shield` was cancelled, from Python 3.14 on."""
    await make(kafka, topic, **{"cleanup.policy": "compact"})
    async with kafka.connect() as bus:
        await bus.publish(topic, b"0", key="k")
        with pytest.raises(BusError, match="INVALID_RECORD"):
            async with bus.publisher(topic) as publisher:
                acknowledgement = await publisher.send(b"1")

                async def wait() -> None:
                    await acknowledgement

                waiting = asyncio.create_task(wait())
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait((waiting,))
                assert waiting.cancelled()
    assert "asyncio" not in {record.name for record in caplog.records}


async def test_more_than_one_request_carries_is_sent_in_several(kafka, topic, monkeypatch):
    """A message of a megabyte for each of 12 partitions, in one turn of the loop."""
    produce_request = producer.produce_request
    requests = []

    def note(batches, timeout):
        requests.append([data for where, data in batches.items() if where.topic == topic])
        return produce_request(batches, timeout)

    monkeypatch.setattr(producer, "produce_request", note)
    await make(kafka, topic, 12)
    async with kafka.connect() as bus, bus.publisher(topic, spread=True) as publisher:
        for first in (0, 12, 24):
            numbers = range(first, first + 12)
            sent = await asyncio.gather(*(publisher.send(b"%08d" % number + bytes(1_000_000)) for number in numbers))
            assert await outcomes(*sent) == [None] * 12
        async with bus.subscribe(topic, start="earliest") as messages:
            assert sorted([int(message.payload[:8]) for message in await take(messages, 36)]) == list(range(36))
            await until(lambda: messages.stats.lag == 0)
            assert messages.stats.received == 36
    # A batch that a broker refuses while it takes over the new topic's partition is sent again, as it was.
    assert len({bytes(data) for request in requests for data in request}) == 36
    assert max(sum(map(len, request)) for request in requests) <= 8 * 2**20


async def test_sequence_numbers_begin_again_at_zero_behind_the_highest(kafka, topic):
    await make(kafka, topic)
    async with kafka.connect() as bus:
        # A broker that knows nothing of a producer on a partition accepts any number.
        bus.core.backend._producer._evicted_sequences[TopicPartition(topic, 0)] = 2**31 - 3
        for first in range(0, 50, 10):
            assert await outcomes(*publishing(bus, topic, range(first, first + 10), pad=b"")) == [None] * 10
    assert await received(kafka, topic) == list(range(50))


async def test_a_batch_that_cannot_be_encoded_fails_alone(kafka, topic, monkeypatch):
    class Refusing:
        def __init__(self, builder):
            self.append = builder.append
            self.set_producer_state = builder.set_producer_state

        def build(self):
            raise MemoryError

    await make(kafka, topic)
    batch_builder = producer.batch_builder
    async with kafka.connect() as bus:
        await bus.publish(topic, b"%08d" % 0)
        monkeypatch.setattr(producer, "batch_builder", lambda *arguments: Refusing(batch_builder(*arguments)))
        with pytest.raises(BusError, match="MemoryError"):
            await bus.publish(topic, b"%08d" % 1)
        monkeypatch.setattr(producer, "batch_builder", batch_builder)
        await bus.publish(topic, b"%08d" % 2)
    assert await received(kafka, topic) == [0, 2]


@pytest.mark.parametrize("size", [3_000, 40_000, 150_000])
async def test_a_publisher_waits_while_nothing_is_acknowledged(kafka, topic, monkeypatch, size):
    """One batch is on its way, two are full, and one is being filled; each of 200,000 bytes."""
    send_now = Client.send_now
    held, sent = [], []

    def hold(client, node, request):
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    await make(kafka, topic)
    options = {"MSIGHT_KAFKA_BATCH_BYTES": "200000", "MSIGHT_PUBLISH_TIMEOUT": "1"}
    async with kafka.connect(**options) as bus, bus.publisher(topic, max_in_flight=1000) as publisher:
        await bus.publish(topic, b"%08d" % 0)
        monkeypatch.setattr(Client, "send_now", hold)
        with pytest.raises(PublishTimeoutError):
            while len(sent) * size < 2_000_000:
                sent.append(await publisher.send(b"%08d" % (len(sent) + 1) + bytes(size)))
        assert len(held) == 1
        assert 400_000 < len(sent) * size <= 800_000
        monkeypatch.setattr(Client, "send_now", send_now)
        held[0].set_exception(KafkaConnectionError("closed"))
        sent.append(await publisher.send(b"%08d" % (len(sent) + 1)))
        assert await outcomes(*sent) == [None] * len(sent)
    assert await received(kafka, topic) == list(range(len(sent) + 1))


async def test_a_publisher_that_has_waited_does_not_wait_again(kafka, topic):
    await make(kafka, topic)
    async with kafka.connect() as bus:
        publisher = bus.core.backend.publisher(topic, None, keeps=False)
        first = await publisher.send(b"%08d" % 0, "key", None)  # waits until the topic is known
        second = publisher.try_send(b"%08d" % 1, "key", None)
        assert second is not BLOCKED
        assert await outcomes(first, second) == [None, None]
    assert await received(kafka, topic) == [0, 1]


async def test_a_topic_with_a_batch_on_its_way_is_not_forgotten(kafka, topic, monkeypatch):
    """The next batch would have the sequence number of that one, and be taken for its repetition."""
    one, *others = (f"{topic}.{number}" for number in range(4))
    send_now = Client.send_now
    answers, held = [], []

    def hold_first(client, node, request):
        answers.append(send_now(client, node, request))
        if held:
            return answers[-1]
        held.append(asyncio.get_running_loop().create_future())
        return held[0]

    for name in (one, *others):
        await make(kafka, name)
    async with kafka.connect(MSIGHT_PUBLISHER_TOPICS="1") as bus:
        await bus.publish(one, b"%08d" % 0)
        monkeypatch.setattr(Client, "send_now", hold_first)
        second = asyncio.ensure_future(bus.publish(one, b"%08d" % 1))
        await until(lambda: held)
        for other in others:
            await bus.publish(other, b"")
        third = asyncio.ensure_future(bus.publish(one, b"%08d" % 2))
        held[0].set_result(await answers[0])
        assert await outcomes(second, third) == [None, None]
    assert await received(kafka, one) == [0, 1, 2]
