"""One batch that fails, or a client that ends, harms no publisher but its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import KafkaConnectionError, NotEnoughReplicasAfterAppendError
from aiokafka.protocol.admin import CreateAclsRequest

from msight_bus import AuthenticationError, BusError, PublishTimeoutError
from msight_bus.backends.kafka import producer
from msight_bus.backends.kafka.aiokafka_compat import Client, produce_errors
from tests.support.kafka_admin import administering, make
from tests.support.kafka_traffic import PAD, Traffic, outcomes, publishing
from tests.support.proxy import HOST, FaultProxy, through
from tests.support.receiving import numbers, take
from tests.support.rig import own_broker, until


async def received(kafka, topic):
    """The numbers on a topic, in order, up to the one that is published now."""
    async with kafka.connect() as bus, bus.subscribe(topic, start="earliest") as messages:
        await bus.publish(topic, b"end", key="end")
        found = []
        while (payload := (await take(messages, 1))[0].payload) != b"end":
            found.append(int(payload[:8]))
        return found


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


async def test_what_follows_a_refused_batch_on_its_partition_keeps_its_order(kafka, topic):
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


async def test_what_a_broker_refuses_for_a_while_is_told_once_and_sent_once(kafka, topic, monkeypatch, caplog):
    """(librdkafka 1421, kafka-python 1580) NOT_ENOUGH_REPLICAS_AFTER_APPEND: the broker has the batch all the same."""
    refusals = 15

    def refuse(response):
        nonlocal refusals
        refusals -= 1
        codes = produce_errors(response)
        return dict.fromkeys(codes, NotEnoughReplicasAfterAppendError.errno) if refusals >= 0 else codes

    monkeypatch.setattr(producer, "produce_errors", refuse)
    await make(kafka, topic)
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"0")
        await bus.publish(topic, b"1")
        assert await numbers(messages, 2) == [0, 1]
    told = [record.getMessage() for record in caplog.records if "again and again" in record.getMessage()]
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


class Tampering(FaultProxy):
    """Changes the error code in the answer to a publish on one topic, once."""

    topic = b""
    code: int | None = None

    def _parts(self, data, step):
        parts = super()._parts(data, step)
        if self.code is None:
            return parts
        name = len(self.topic).to_bytes(2, "big") + self.topic
        first = name + bytes(3) + b"\x01" + bytes(4)  # of one partition, the first
        answer = first + bytes(2) + bytes(4)  # no error, a small offset
        told = first + self.code.to_bytes(2, "big", signed=True) + bytes(4)
        changed = [part.replace(answer, told) for part in parts]
        if changed != parts:
            self.code = None
        return changed


@asynccontextmanager
async def behind(proxy):
    """Kafka, which tells its clients the proxy's address."""
    async with proxy:
        with own_broker("kafka", [f"advertised.listeners=CLIENT://{HOST}:{proxy.port}"]) as (broker, backend):
            proxy.broker_port = broker.port
            yield through(proxy, backend)


@pytest.mark.faults
async def test_an_unknown_outcome_is_reported_and_harms_no_other_topic():
    proxy = Tampering()
    async with behind(proxy) as kafka, kafka.connect() as bus:
        for name in ("good", "bad"):
            await make(kafka, name)
        async with Traffic(bus, "good") as traffic:
            await bus.publish("bad", b"%08d" % 0)
            # UNKNOWN_SERVER_ERROR, OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER_ID
            for at, code in enumerate((-1, 45, 47, 59)):
                first = 1 + 200 * at
                proxy.topic, proxy.code = b"bad", code
                results = await outcomes(*publishing(bus, "bad", range(first, first + 200)))
                assert proxy.code is None
                lost = [i for i, result in enumerate(results) if result is not None]
                assert lost == list(range(len(lost)))  # the first batch and no other
                assert 0 < len(lost) < 100
                await traffic.moves()
        assert await received(kafka, "bad") == list(range(801))  # the broker had what it did not acknowledge
        assert await received(kafka, "good") == list(range(traffic.count))


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_what_was_in_flight_is_sent_again_without_a_duplicate(kafka, topic, monkeypatch, how):
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
    monkeypatch.setattr(producer, "_LEFT_OFF", 1)
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
