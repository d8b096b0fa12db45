"""Topics with names of other programs: ``/`` between parts."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import TopicError
from msight_bus.nodes import NodeConfig, run_until
from msight_bus.patterns import TopicPattern, check_entries
from msight_bus.registry import Registry
from tests.support.nodes import DEADLINE, Apply, Collect, running
from tests.support.receiving import take


@pytest.fixture
def slashed(topic):
    """A topic with slashes that no other test uses."""
    return f"{topic}/camera/ne.front"


@pytest.fixture
def slashes(backend):
    """The backends that accept ``/``."""
    if backend.name == "kafka":
        pytest.skip("Kafka accepts no '/'")
    return backend


async def echo(data):
    return data


async def test_a_topic_with_slashes(slashes, slashed):
    async with slashes.connect() as bus, bus.subscribe([f"{slashed}/left", slashed]) as subscription:
        await bus.publish(slashed, b"1")
        async with bus.publisher(slashed) as publisher:
            await publisher.send(b"2", headers={"lens": "wide"} if bus.capabilities.native_headers else None)
        await bus.publish(f"{slashed}/left", b"3")
        messages = await take(subscription, 3)
        assert subscription.stats.missing == 0
    assert sorted((message.payload, message.topic) for message in messages) == [
        (b"1", slashed),
        (b"2", slashed),
        (b"3", f"{slashed}/left"),
    ]


async def test_the_announced_topics_of_a_node_can_have_slashes(slashes, slashed):
    topics = {"subscribe_topic_name": slashed, "publish_topic_name": f"{slashed}/out"}
    node = Apply(NodeConfig(name="n", heartbeat_update_interval=0.2, **topics), echo)
    sink = Collect(NodeConfig(name="sink", subscribe_topic_name=f"{slashed}/out"))
    async with slashes.connect() as bus, asyncio.timeout(DEADLINE), running(bus, sink, node):
        registry: Registry = await bus.nodes()
        await registry.wait_until(lambda nodes: "n" in nodes)
        assert (registry["n"].subscribe_topic, registry["n"].publish_topic) == (slashed, f"{slashed}/out")
        await bus.publish(slashed, b"1")
        assert await sink.until(1) == [b"1"]


def test_a_slash_is_an_ordinary_character_of_a_part_of_a_pattern():
    assert check_entries(["*", "site/a.*", ">"]) == ("*", "site/a.*", ">")
    assert TopicPattern("*", ".dead").matches("camera/ne")
    assert TopicPattern("site/a.*", ".dead").matches("site/a.b/c")
    assert not TopicPattern("site/a.*", ".dead").matches("site.a.b")
    for wrong in ("camera/*", "*/ne", "camera/>", "camera/*.ne", "/camera.*", "camera/.*"):
        with pytest.raises(TopicError):
            check_entries(wrong)


async def test_kafka_says_that_it_accepts_no_slash(kafka, slashed):
    def says():
        return pytest.raises(
            TopicError, match=r"is not a valid topic on Kafka, which does not accept '/'\. Use '\.' instead"
        )

    async with kafka.connect() as bus:
        with says():
            await bus.publish(slashed, b"1")
        with says():
            bus.publisher(slashed)
        for entries in (slashed, [f"{slashed}/*".replace("/*", ".*"), "a"], ["a", slashed]):
            with says() as caught:
                bus.subscribe(entries)
            assert "/" in caught.value.topic
        for topics in (
            {"subscribe_topic_name": slashed},
            {"subscribe_topic_name": "a", "dead_letter_topic_name": "a/b.dead"},
        ):
            node = Collect(NodeConfig(name="n", **topics))
            with says():
                await run_until(bus, node, stop=asyncio.Event())
