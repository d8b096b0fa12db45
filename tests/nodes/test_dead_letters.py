"""Failed inputs are published unchanged on the dead-letter topic and do not block later inputs."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from msight_bus import AuthenticationError, NodeConfig
from msight_bus.backends.kafka.client import client_options
from msight_bus.core import Core
from tests.support.brokers import GROUP
from tests.support.kafka_admin import committed, make
from tests.support.nodes import DEADLINE, Collect, eventually, running
from tests.support.receiving import take

POISON = b"poison"


class Picky(Collect):
    """Handles everything but what begins as poison does."""

    async def on_message(self, data):
        if data.startswith(POISON):
            raise ValueError("nobody can handle this")
        await super().on_message(data)


@pytest.fixture
def node(topic):
    return Picky(
        NodeConfig(
            name=topic.replace(".", "-"),
            subscribe_topic_name=topic,
            dead_letter_topic_name=f"{topic}.dead",
            action_on_error="continue",
        )
    )


async def send(kafka, topic, value, headers=(), key=None):
    """Send a record as another make would."""
    async with AIOKafkaProducer(**client_options(kafka.settings()), max_request_size=4_000_000) as other:
        await other.send_and_wait(topic, value, key=key, headers=list(headers), partition=0)


async def records(kafka, topic, n):
    """The first records of a topic, as another make reads them."""
    async with AIOKafkaConsumer(topic, **client_options(kafka.settings()), auto_offset_reset="earliest") as other:
        async with asyncio.timeout(DEADLINE):
            return [await other.getone() for _ in range(n)]


async def handled(kafka, node, topic, *poison, **variables):
    """Let a node handle ``poison`` and a message behind it; returns what is committed at the end."""
    async with kafka.connect(**variables) as bus, running(bus, node):
        for value, headers, key in poison:
            await send(kafka, topic, value, headers, key)
        await send(kafka, topic, b"fine")
        await eventually(node.came, lambda: b"fine" in node.items)
        async with asyncio.timeout(DEADLINE):
            while node.left:
                await asyncio.sleep(0.01)
        dropped = node.metrics().dropped
    return await committed(kafka, topic, node.config.group_where_kept()), dropped


async def test_a_record_of_another_client_is_dead_lettered_unchanged(kafka, topic, node):
    await make(kafka, topic)
    headers = [("content type", b"x"), ("bytes", b"\xff\x00"), ("null", None), ("twice", b"1"), ("twice", b"2")]
    assert await handled(kafka, node, topic, (POISON, headers, b"\xfe key")) == (2, 0)
    (letter,) = await records(kafka, f"{topic}.dead", 1)
    assert (letter.value, letter.key) == (POISON, b"\xfe key")
    ours = ("msight", "msight-dead-topic", "msight-dead-error")
    assert [header for header in letter.headers if header[0] not in ours] == headers
    assert dict(letter.headers)["msight-dead-topic"] == topic.encode()
    assert dict(letter.headers)["msight-dead-error"] == b"ValueError"


async def test_a_record_too_large_with_its_headers_is_dead_lettered_without_them(kafka, topic, node):
    await make(kafka, topic)
    headers = [("a", bytes(900))]
    await make(kafka, f"{topic}.dead", **{"max.message.bytes": "2000"})
    assert await handled(kafka, node, topic, (POISON + bytes(1200), headers, None)) == (2, 0)
    (letter,) = await records(kafka, f"{topic}.dead", 1)
    assert letter.value == POISON + bytes(1200)
    marks = dict(letter.headers)
    assert marks["msight-dead-headers"] == b"omitted"
    assert marks["msight-dead-topic"] == topic.encode()
    assert "a" not in marks


@pytest.mark.parametrize("why", ["too large", "compacted", "not created"])
async def test_a_record_that_cannot_be_dead_lettered_is_counted_logged_and_done(kafka, topic, node, caplog, why):
    await make(kafka, topic)
    variables = {}
    if why == "too large":
        await make(kafka, f"{topic}.dead", **{"max.message.bytes": "1000"})
    elif why == "compacted":
        await make(kafka, f"{topic}.dead", **{"cleanup.policy": "compact"})
    else:
        variables["MSIGHT_KAFKA_CREATE_TOPICS"] = "false"
    assert await handled(kafka, node, topic, (POISON + bytes(1200), (), None), **variables) == (2, 1)
    (line,) = [record.getMessage() for record in caplog.records if "Dead letter" in record.getMessage()]
    assert f"{topic}.dead" in line
    assert "partition 0, offset 0" in line


async def test_nack_dead_letters_a_record_unchanged(kafka, topic):
    await make(kafka, topic)
    headers = [("content type", b"x"), ("bytes", b"\xff\x00"), ("twice", b"1"), ("twice", b"2")]
    async with kafka.connect(MSIGHT_KAFKA_MAX_REDELIVERIES="0") as bus:
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            await send(kafka, topic, None, headers, b"\xfe key")
            await (await take(messages, 1))[0].nack()
    (letter,) = await records(kafka, f"{topic}.dead", 1)
    assert (letter.value, letter.key) == (None, b"\xfe key")
    assert [header for header in letter.headers if not header[0].startswith("msight")] == headers
    assert dict(letter.headers)["msight-dead-position"] == b"0:0"
    assert await committed(kafka, topic, GROUP) == 1


async def test_nack_of_a_record_that_cannot_be_dead_lettered_is_counted_and_done(kafka, topic, caplog):
    await make(kafka, topic)
    await make(kafka, f"{topic}.dead", **{"max.message.bytes": "1000"})
    async with kafka.connect(MSIGHT_KAFKA_MAX_REDELIVERIES="0") as bus:
        async with bus.subscribe(topic, group_id=GROUP, ack="manual") as messages:
            await send(kafka, topic, bytes(1200))
            await (await take(messages, 1))[0].nack()
            assert messages.stats.dropped == {"no dead letter": 1}
    assert await committed(kafka, topic, GROUP) == 1
    assert "Dead letter not published" in caplog.text


async def test_an_input_without_a_possible_dead_letter_is_done(memory, topic, monkeypatch, caplog):
    node = Picky(
        NodeConfig(
            name="n", subscribe_topic_name=topic, dead_letter_topic_name=f"{topic}.dead", action_on_error="continue"
        )
    )
    publish = Core.publish

    async def refuse(core, topic, *what):
        if topic.endswith(".dead"):
            raise AuthenticationError("not permitted")
        await publish(core, topic, *what)

    async with memory.connect() as bus, running(bus, node):
        monkeypatch.setattr(Core, "publish", refuse)
        await bus.publish(topic, POISON)
        await bus.publish(topic, b"fine")
        await node.until(1)
        assert node.metrics().dropped == 1
    assert "Dead letter not published" in caplog.text
    assert "not permitted" in caplog.text


@pytest.mark.parametrize("kind", ["memory", "redis", "nats"])
async def test_a_dead_letter_refused_because_of_its_headers_is_published_without_them(request, topic, kind):
    backend = request.getfixturevalue(kind)
    node = Picky(
        NodeConfig(
            name="n", subscribe_topic_name=topic, dead_letter_topic_name=f"{topic}.dead", action_on_error="continue"
        )
    )
    async with backend.connect(MSIGHT_MAX_HEADER_COUNT="3") as bus, bus.subscribe(f"{topic}.dead") as dead:
        async with running(bus, node):
            await bus.publish(topic, POISON, headers={"a": "1", "b": "2", "c": "3"})
            (letter,) = await take(dead, 1)
    assert letter.payload == POISON
    assert letter.headers == {
        "msight-dead-topic": topic,
        "msight-dead-error": "ValueError",
        "msight-dead-headers": "omitted",
    }
