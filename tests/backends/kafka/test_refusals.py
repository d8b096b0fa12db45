"""A refused record takes no other record of its batch with it (KIP-467)."""

from __future__ import annotations

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from msight_bus import BusError, MessageTooLargeError
from tests.support.kafka_admin import administering, make
from tests.support.kafka_answers import PRODUCE, changing_answers
from tests.support.kafka_records import Rec, batch_of, raw_producer
from tests.support.kafka_traffic import outcomes, publishing
from tests.support.kafka_traffic import received as all_received

API_VERSIONS = 18
PROBE = 99_999_999
"""The number of the records that find out whether a limit is applied: the broker accepts the first ones."""
COMPACT = {"cleanup.policy": "compact"}


def without_names(answer: bytes) -> bytes:
    """The answer to an ApiVersions request of a broker that knows Produce only up to version 7, which names no record."""
    entries = range(10, len(answer), 6)  # behind correlation id, error code and count: key, oldest and newest version
    (at,) = [at for at in entries if answer[at : at + 2] == bytes(2)]
    return answer[: at + 4] + (7).to_bytes(2, "big") + answer[at + 6 :]


async def lower_limit(kafka, topic, size):
    """Lower the topic's ``max.message.bytes``, and wait until the broker applies it."""
    async with administering(kafka) as admin, raw_producer(kafka) as produce:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})])
        with pytest.raises(AssertionError, match="error 10"):
            while True:
                await produce(topic, batch_of(Rec(b"%08d" % PROBE + bytes(size))))


async def received(kafka, topic):
    """The numbers on a topic, without those of `lower_limit`."""
    return [number for number in await all_received(kafka, topic) if number != PROBE]


def keyed(bus, topic, numbers, unkeyed):
    """A publish of each number, with a key unless it is one of ``unkeyed``."""
    return [bus.publish(topic, b"%08d" % i, key=None if i in unkeyed else "k") for i in numbers]


async def test_only_the_record_that_the_broker_names_is_refused(kafka, topic):
    await make(kafka, topic, **COMPACT)
    async with kafka.connect() as bus:
        await bus.publish(topic, b"%08d" % 0, key="k")
        first, refused, last = await outcomes(*keyed(bus, topic, (1, 2, 3), {2}))
        assert (first, last) == (None, None)
        assert "Compacted topic cannot accept message without key" in str(refused)
        await bus.publish(topic, b"%08d" % 4, key="k")
    assert await received(kafka, topic) == [0, 1, 3, 4]


async def test_where_every_record_is_refused_each_publish_raises(kafka, topic):
    await make(kafka, topic, **COMPACT)
    async with kafka.connect() as bus:
        await bus.publish(topic, b"%08d" % 0, key="k")
        for refused in await outcomes(*keyed(bus, topic, (1, 2, 3), {1, 2, 3})):
            assert "Compacted topic cannot accept message without key" in str(refused)
        await bus.publish(topic, b"%08d" % 4, key="k")
    assert await received(kafka, topic) == [0, 4]


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_what_was_sent_with_a_refused_record_arrives_once_and_in_order(kafka, topic, compression):
    await make(kafka, topic, **COMPACT)
    unkeyed = {0, 7, 8, 250, 399}
    async with kafka.connect(MSIGHT_KAFKA_COMPRESSION=compression) as bus:
        results = await outcomes(*keyed(bus, topic, range(400), unkeyed))
    assert {i for i, result in enumerate(results) if result is not None} == unkeyed
    assert await received(kafka, topic) == [i for i in range(400) if i not in unkeyed]


async def test_the_records_of_a_stream_have_their_own_outcomes(kafka, topic):
    await make(kafka, topic, **COMPACT)
    headers = {"name": "value", "other": "é"}
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        with pytest.raises(BusError, match="without key"):
            async with bus.publisher(topic) as publisher, bus.publisher(topic) as other:
                await bus.publish(topic, b"0", key="k")
                sent = [await publisher.send(b"%d" % i, None if i % 5 == 3 else f"k{i}", headers) for i in range(1, 20)]
                more = [await other.send(b"%d" % i, "k", headers) for i in range(20, 30)]
                assert [i for i, error in enumerate(await outcomes(*sent), 1) if error] == [3, 8, 13, 18]
                assert await outcomes(*more) == [None] * 10
                await other.flush()  # the refusals are the other publisher's
        await bus.publish(topic, b"30", key="k")
        got = [await anext(messages) for _ in range(27)]
    assert [int(message.payload) for message in got] == [i for i in range(31) if i % 5 != 3 or i > 19]
    assert [message.key for message in got[1:4]] == ["k1", "k2", "k4"]
    assert all(message.headers == headers for message in got[1:-1])


async def test_a_refusal_after_a_lost_answer_takes_no_other_record_with_it(kafka, topic):
    lost = []

    def lose_first(request, answer):
        if request.kind == PRODUCE and len(lost) == 1:
            return lost.append(answer)
        if request.kind == PRODUCE and not lost:
            lost.append(answer)
        return answer

    await make(kafka, topic, **COMPACT)
    async with changing_answers(kafka, lose_first) as way, way.connect() as bus:
        await bus.publish(topic, b"%08d" % 0, key="k")
        results = await outcomes(*keyed(bus, topic, range(1, 20), {5}))
        assert len(lost) == 2
        assert [i for i, result in enumerate(results, 1) if result is not None] == [5]
    assert await received(kafka, topic) == [i for i in range(20) if i != 5]


async def test_where_the_broker_names_no_record_halving_finds_it(kafka, topic):
    versions = set()

    def change(request, answer):
        if request.kind == PRODUCE:
            versions.add(request.version)
        return without_names(answer) if request.kind == API_VERSIONS else answer

    await make(kafka, topic, **COMPACT)
    unkeyed = {31, 32, 90}
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        await bus.publish(topic, b"%08d" % 0, key="k")
        results = await outcomes(*keyed(bus, topic, range(1, 100), unkeyed))
    assert versions == {7}
    assert {i for i, result in enumerate(results, 1) if result is not None} == unkeyed
    assert await received(kafka, topic) == [i for i in range(100) if i not in unkeyed]


async def test_a_batch_is_not_halved_without_end(kafka, topic):
    """Each record is at fault, and the broker names none."""
    requests = []

    def change(request, answer):
        if request.kind == PRODUCE:
            requests.append(request)
        return without_names(answer) if request.kind == API_VERSIONS else answer

    await make(kafka, topic, **COMPACT)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        results = await outcomes(*keyed(bus, topic, range(1000), range(1000)))
        assert None not in results
        assert len(requests) < 500
        await bus.publish(topic, b"%08d" % 1000, key="k")
    assert await received(kafka, topic) == [1000]


async def test_only_the_record_that_is_too_large_is_refused(kafka, topic):
    await make(kafka, topic)
    async with kafka.connect() as bus:
        await bus.publish(topic, b"%08d" % 0)
        await lower_limit(kafka, topic, 2000)
        large = bus.publish(topic, b"%08d" % 3 + bytes(3000))
        results = await outcomes(
            *publishing(bus, topic, (1, 2), pad=b""), large, *publishing(bus, topic, (4, 5, 6), pad=b"")
        )
        assert [type(result) for result in results] == [type(None)] * 2 + [MessageTooLargeError] + [type(None)] * 3
    assert await received(kafka, topic) == [0, 1, 2, 4, 5, 6]


async def test_a_stream_knows_the_outcome_of_each_record_after_the_first_refusal(kafka, topic):
    """Records that share an acknowledgement share the refusal, once; the others of them are delivered."""
    await make(kafka, topic)
    async with kafka.connect() as bus:
        publisher = await bus.publisher(topic).__aenter__()
        await bus.publish(topic, b"%08d" % 0)
        await lower_limit(kafka, topic, 2000)
        sent = [await publisher.send(b"%08d" % i + bytes(3000 * (i == 2))) for i in (1, 2, 3)]
        assert {type(error) for error in await outcomes(*sent)} == {MessageTooLargeError}
        with pytest.raises(MessageTooLargeError):
            await publisher.flush()
        await lower_limit(kafka, topic, 1000)
        sent = [await publisher.send(b"%08d" % i + bytes(1500 * (i == 5))) for i in (4, 5, 6)]
        assert [error is None for error in await outcomes(*sent)] == [True, False, True]
        with pytest.raises(MessageTooLargeError):
            await publisher.flush()
        await publisher.__aexit__(None, None, None)
    assert await received(kafka, topic) == [0, 1, 3, 4, 6]


async def test_small_records_are_accepted_although_their_batch_is_too_large(kafka, topic):
    await make(kafka, topic)
    async with kafka.connect() as bus:
        await bus.publish(topic, b"%08d" % 0)
        await lower_limit(kafka, topic, 2000)
        results = await outcomes(*publishing(bus, topic, range(1, 50), pad=bytes(500)))
        assert set(results) == {None}
    assert await received(kafka, topic) == list(range(50))
