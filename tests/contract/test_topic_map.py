"""``MSIGHT_TOPIC_MAP``: topics whose names on the broker are not valid topics.

The other programs are connections without a map: `by_name` publishes on a name of the broker.
"""

from __future__ import annotations

import asyncio
import json
import warnings

import pytest

import msight_bus
from msight_bus import ConfigError, QueuePolicy, TopicError
from msight_bus.events import DeadlineMissed, Gap, Refused
from msight_bus.nodes import NodeConfig, run_until
from msight_bus.topics import NODES_TOPIC
from tests.support.brokers import make_backend
from tests.support.nodes import DEADLINE, Apply, Collect, running, start
from tests.support.receiving import take
from tests.support.rig import seen, until

NAMES = {
    "memory": "camera@gs {} ne\r\n*",
    "redis": "camera@gs {} ne\r\n*3\r\n$7\r\nPUBLISH\r\n",
    "nats": "camera@gs:{}.né",
    "kafka": "__camera..{}",
}


@pytest.fixture
def name(backend, topic):
    """A name on the broker that is not a valid topic, and that no other test uses."""
    return NAMES[backend.name].format(topic)


@pytest.fixture
def here(topic):
    """The topic that stands for that name."""
    return f"{topic}.gs_ne"


def mapped(backend, entries, **options):
    return backend.connect(MSIGHT_TOPIC_MAP=json.dumps(entries), **options)


async def by_name(bus, name, *payloads):
    """Publish on a name of the broker, without a map."""
    publisher = bus.core.backend.publisher(name, "other", keeps=False)
    try:
        for payload in payloads:
            outcome = await publisher.send(payload, None, None)
            if outcome is not None:
                await outcome
        await publisher.flush()
    finally:
        publisher.close()


# -- publishing and subscribing


async def test_a_topic_here_is_another_name_on_the_broker(backend, name, here, topic):
    """Two programs with different topics for one name, and one without a map."""
    async with (
        mapped(backend, {name: here}) as bus,
        mapped(backend, {name: f"{topic}.elsewhere"}) as elsewhere,
        backend.connect() as other,
        bus.subscribe(here) as messages,
        elsewhere.subscribe([f"{topic}.elsewhere"]) as there,
    ):
        await bus.publish(here, b"1", key="k", headers={"lens": "wide"})
        async with bus.publisher(here) as publisher:
            await publisher.send(b"2")
        first = await take(messages, 2)
        await by_name(other, name, b"3")
        second = await take(messages, 1)
        assert [(message.topic, message.payload) for message in first + second] == [
            (here, b"%d" % n) for n in (1, 2, 3)
        ]
        assert (first[0].key, dict(first[0].headers)) == ("k", {"lens": "wide"})
        assert {message.topic for message in await take(there, 3)} == {f"{topic}.elsewhere"}
        assert messages.topic == here
        assert messages.stats.topics[here].received == 3


async def test_a_topic_that_is_not_mapped_keeps_its_name(backend, name, here, topic):
    async with mapped(backend, {name: here}) as bus, backend.connect() as other:
        async with bus.subscribe([here, f"{topic}.b"]) as messages:
            await other.publish(f"{topic}.b", b"1")
            await by_name(other, name, b"2")
            assert {(message.topic, message.payload) for message in await take(messages, 2)} == {
                (f"{topic}.b", b"1"),
                (here, b"2"),
            }


async def test_two_names_can_be_exchanged(backend, topic):
    a, b = f"{topic}.a", f"{topic}.b"
    async with mapped(backend, {a: b, b: a}) as bus, backend.connect() as other:
        async with bus.subscribe(a) as messages:
            await other.publish(a, b"on a")
            await other.publish(b, b"on b")
            (message,) = await take(messages, 1)
            assert (message.topic, message.payload) == (a, b"on b")


async def test_a_mapped_name_is_not_used_as_a_topic(backend, here, topic):
    old = f"{topic}.old"

    def says():
        return pytest.raises(TopicError, match=r"MSIGHT_TOPIC_MAP maps the name .*gs_ne'; use that topic")

    async with mapped(backend, {old: here}) as bus:
        with says():
            await bus.publish(old, b"")
        with says():
            bus.publisher(old)
        with says():
            bus.subscribe([here, old])
        with says():
            await run_until(bus, Collect(NodeConfig(name="n", subscribe_topic_name=old)), stop=asyncio.Event())


async def test_a_mapped_name_that_is_no_valid_topic_is_refused_with_its_topic(backend, name, here):
    def says():
        return pytest.raises(TopicError, match=r"MSIGHT_TOPIC_MAP maps the name .*gs_ne'; use that topic")

    async with mapped(backend, {name: here}) as bus:
        with says():
            await bus.publish(name, b"")
        with says():
            bus.publisher(name)
        for topics in (name, ["other", name]):
            with says():
                bus.subscribe(topics)
        with pytest.raises(TopicError, match="must be a str, not list"):
            await bus.publish([name], b"")


# -- what is counted and reported


async def test_losses_are_counted_on_the_topic_here(backend, name, here):
    if backend.name == "kafka":
        pytest.skip("the log keeps the messages")
    events = []
    fast = {"MSIGHT_ANNOUNCE_INTERVAL": "0.1"}
    async with mapped(backend, {name: here}, events=events) as bus, mapped(backend, {name: here}, **fast) as other:
        async with bus.subscribe(here) as messages:
            await other.publish(here, b"1")
            counter = other.core.backend._topics.known(name).counter
            counter.sequence += 2
            await other.publish(here, b"2")
            await take(messages, 2)
            counter.sequence += 1  # a loss at the end, which the announcement of the last sequence reveals
            await until(lambda: messages.stats.missing == 3)
            assert messages.stats.topics[here].missing == 3
    assert {(event.topic, event.missing) for event in events if isinstance(event, Gap)} == {(here, 2), (here, 1)}


async def test_a_refusal_names_the_topic_here(backend, name, here):
    events = []
    async with mapped(backend, {name: here}, events=events) as bus:
        for refused in (name, "other"):
            bus.core._report(Refused(refused, "by the test"))
        await until(lambda: len(events) == 2)
    assert [event.topic for event in events] == [here, "other"]


async def test_the_dead_letter_topic_of_a_node_can_be_mapped(backend, name, topic):
    dead = f"{topic}.gs_ne.dead"

    async def fail(data):
        raise ValueError

    node = Apply(
        NodeConfig(
            name=topic.replace(".", "-"),
            subscribe_topic_name=topic,
            publish_topic_name=f"{topic}.out",
            dead_letter_topic_name=dead,
            action_on_error="continue",
        ),
        fail,
    )
    other = {name: f"{topic}.elsewhere"}
    async with mapped(backend, {name: dead}) as bus, mapped(backend, other) as elsewhere, asyncio.timeout(DEADLINE * 2):
        async with elsewhere.subscribe(f"{topic}.elsewhere") as letters, running(bus, node):
            await bus.publish(topic, b"1")
            (letter,) = await take(letters, 1)
    assert (letter.payload, letter.headers["msight-dead-topic"]) == (b"1", topic)


async def test_an_offset_is_of_the_topic_here(kafka, topic):
    name, here = f"_{topic}", f"{topic}.gs_ne"
    async with mapped(kafka, {name: here}, MSIGHT_KAFKA_PARTITIONS="1") as bus:
        for number in range(5):
            await bus.publish(here, b"%d" % number)
        for offset in ({0: 3}, {(here, 0): 3}):
            async with bus.subscribe([here], start=offset) as messages:
                assert [(m.topic, m.payload) for m in await take(messages, 2)] == [(here, b"3"), (here, b"4")]


async def test_latest_on_a_log_skips_records_of_the_topic_here(kafka, topic):
    name, here = f"_{topic}", f"{topic}.gs_ne"
    async with mapped(kafka, {name: here}, MSIGHT_KAFKA_PARTITIONS="1") as bus:
        async with bus.subscribe(here, group_id=topic) as messages:
            await bus.publish(here, b"first")
            await take(messages, 1)
        for number in range(20):
            await bus.publish(here, b"%d" % number)
        async with bus.subscribe(here, group_id=topic, queue=QueuePolicy.latest(2)) as messages:
            assert [message.payload for message in await take(messages, 2)] == [b"18", b"19"]
            assert messages.stats.topics[here].dropped["skipped"] > 0


# -- patterns


@pytest.mark.parametrize("group_id", [None, "group"])
async def test_a_pattern_matches_the_topics_here(backend, name, here, topic, group_id):
    """Each message once: on a name that the broker's pattern does not match, and on one that it matches."""
    entries = {
        name: here,
        f"{topic}.old": f"{topic}.new",  # the broker's pattern matches the name
        f"{topic}.away": f"elsewhere.{topic}",  # the pattern does not match the topic
        f"elsewhere.{topic}.x": f"{topic}.back",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", msight_bus.CapabilityWarning)
        async with mapped(backend, entries, MSIGHT_STRICT="false") as bus, backend.connect() as other:
            async with bus.subscribe([f"{topic}.*"], group_id=group_id) as messages:
                for number, on in enumerate([*entries, f"{topic}.new", f"{topic}.plain"]):
                    await by_name(other, on, b"%d" % number)
                await bus.publish(f"{topic}.new", b"6")
                came = sorted((message.topic, message.payload) for message in await take(messages, 5))
                ours = [here, f"{topic}.new", f"{topic}.back", f"{topic}.plain"]
                for on in ours:  # behind whatever came twice or by another name
                    await bus.publish(on, b"end")
                ends = sorted((message.topic, message.payload) for message in await take(messages, 4))
                assert messages.stats.dropped.keys() <= {"revoked"}  # a new topic rebalances a group on Kafka
    assert came == sorted(
        [
            (here, b"0"),
            (f"{topic}.new", b"1"),
            (f"{topic}.new", b"6"),
            (f"{topic}.back", b"3"),
            (f"{topic}.plain", b"5"),
        ]
    )
    assert ends == sorted((on, b"end") for on in ours)


async def test_a_literal_topic_owns_a_mapped_name(backend, name, here, topic):
    async with mapped(backend, {name: here, f"{topic}.old": f"{topic}.new"}) as bus:
        async with bus.subscribe([f"{topic}.*", here, f"{topic}.new", ">"]) as messages:
            ours = [here, f"{topic}.new", f"{topic}.plain"]
            for number in range(2):
                for on in ours:
                    await bus.publish(on, b"%d" % number)
            came = []
            while len(came) < 2 * len(ours):  # other tests publish too
                came += [message.topic for message in await take(messages, 1) if message.topic.startswith(f"{topic}.")]
            assert sorted(came) == sorted(ours * 2)


# -- names that a broker does not accept


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *(
            ("nats", name)
            for name in ("a b", "a\tb", "a\r\nSUB x 1", "a.*", ">", "a>", "a..b", ".a", "a.", "a\x00", "a\x7f")
        ),
        *(("kafka", name) for name in ("a b", "a/b", "é", ".", "..", "a\n")),
    ],
)
async def test_a_name_that_the_broker_does_not_accept_is_named_before_connecting(kind, wrong):
    settings = msight_bus.BusSettings(
        environ={"MSIGHT_PUBSUB_BACKEND": kind, "MSIGHT_TOPIC_MAP": json.dumps({"fine": "a", wrong: "b"})}
    )
    with pytest.raises(ConfigError, match="MSIGHT_TOPIC_MAP must name topics of") as caught:
        msight_bus.connect(settings)
    assert len(caught.value.problems) == 1
    assert repr(wrong) in str(caught.value)


async def test_a_slash_here_can_be_another_name_on_kafka(kafka, topic):
    async with mapped(kafka, {topic: "camera/ne"}) as bus, bus.subscribe("camera/ne") as messages:
        await bus.publish("camera/ne", b"1")
        (message,) = await take(messages, 1)
    assert message.topic == "camera/ne"


# -- registry


async def test_a_registry_shows_the_topics_of_its_own_map():
    memory = make_backend("memory")
    entries = {"camera@gs ne": "camera.gs_ne", "objects of ne": "objects", "radar\r\n": "radar"}
    topics = ["camera.gs_ne", "lidar.*", "radar"]
    config = NodeConfig(name="n", subscribe_topic_name=topics, publish_topic_name="objects")

    async def echo(data):
        return data

    async with (
        mapped(memory, entries) as bus,
        mapped(memory, {"camera@gs ne": "ne"}) as other,
        memory.connect() as plain,
    ):
        async with plain.core.subscribe((NODES_TOPIC,)) as announcements:
            registries = [await one.nodes() for one in (bus, other, plain)]
            task = await start(bus, Apply(config, echo))
            for registry in registries:
                await registry.wait_until(lambda nodes: "n" in nodes)
            seen = [(registry["n"].inputs, registry["n"].output) for registry in registries]
            task.cancel()
            await asyncio.wait([task])
            payload = json.loads((await anext(announcements)).payload)
    assert seen == [
        (("camera.gs_ne", "lidar.*", "radar??"), "objects"),
        (("ne", "lidar.*", "radar??"), "objects of ne"),
        (("camera@gs ne", "lidar.*", "radar??"), "objects of ne"),
    ]
    assert (payload["publish_topic"], payload["output"]) == (None, "objects of ne")


async def test_a_mapped_topic_has_its_deadline_as_others(backend, topic, name, here):
    """From the beginning where it is given by name, else from its first message on."""
    events: list = []
    async with mapped(backend, {name: here}, events=events) as bus:
        async with bus.subscribe([f"{topic}.named", f"{topic}.*"], deadline=0.3) as messages:
            await until(lambda: seen(events, DeadlineMissed))
            assert seen(events, DeadlineMissed) == [DeadlineMissed(f"{topic}.named", 0.3)]
            await bus.publish(here, b"x")
            await take(messages, 1)
            await until(lambda: DeadlineMissed(here, 0.3) in events)
        events.clear()
        async with bus.subscribe(here, deadline=0.3):
            await until(lambda: DeadlineMissed(here, 0.3) in events)
