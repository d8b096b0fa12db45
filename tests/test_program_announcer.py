"""Programs that are no nodes announce themselves on every backend, and the registry lists them beside the nodes."""

from __future__ import annotations

import asyncio
import json
import os
import socket

import msgspec
import pytest

from msight_bus import NodeStatus, ProgramInfo
from msight_bus.announcements import MAX_PROGRAM_BYTES, MAX_PROGRAM_TOPICS, ProgramTopic
from msight_bus.doctor import checks
from msight_bus.events import Gap, Reconnected, Refused
from msight_bus.known_programs import MAX_NODES
from msight_bus.message import Message
from msight_bus.nodes import NodeConfig
from msight_bus.registry import Registry
from msight_bus.topics import ALIVE_TOPIC, NODES_TOPIC
from tests.support.brokers import Backend
from tests.support.kafka_admin import administering
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, running
from tests.support.proxy import FaultProxy, port_of, through
from tests.support.receiving import take
from tests.support.rig import QUICKLY, own_broker, python, seen, until
from tests.support.servers import PREFIX


@pytest.fixture
def name(topic):
    """The name of the device in this test, because other tests announce programs on the same broker."""
    return topic


def program(registry, name):
    """The only program of that name."""
    (found,) = [one for one in registry.programs if one.name == name]
    return found


async def announced(registry, name, condition=lambda info: True):
    """Wait until a program of that name is announced and the condition holds."""
    await registry.wait_until(lambda known: any(one.name == name and condition(one) for one in known.programs))
    return program(registry, name)


def topics_of(info):
    return {one.topic: (one.published, one.subscribed) for one in info.topics}


async def test_a_program_is_announced_with_its_topics_and_its_end(backend, topic, name):
    async with backend.connect() as observer:
        registry = await observer.nodes()
        async with (
            backend.connect(MSIGHT_EDGE_DEVICE_NAME=name) as bus,
            bus.subscribe([f"{topic}.in", f"{topic}.pattern.*"]),
            bus.publisher(f"{topic}.out") as publisher,
        ):
            await publisher.send(b"x")
            await bus.publish(f"{topic}.other", b"x")
            info = await announced(registry, name, lambda info: len(info.topics) == 4)
            assert (info.host, info.process) == (socket.gethostname(), os.getpid())
            assert (info.status, info.ended, info.more_topics) == ("RUNNING", False, 0)
            assert info.present == (not bus.capabilities.persistence)
            assert topics_of(info) == {
                f"{topic}.in": (False, True),
                f"{topic}.pattern.*": (False, True),
                f"{topic}.out": (True, False),
                f"{topic}.other": (True, False),
            }
            assert [one for one in registry if one.name == name] == []
        info = await announced(registry, name, lambda info: info.ended)
        assert info.status == "STOPPED"
        assert registry.ignored == 0


async def test_a_bus_that_is_used_for_a_moment_is_not_announced(backend, topic, name):
    async with backend.connect() as observer:
        registry = await observer.nodes()
        async with backend.connect(MSIGHT_EDGE_DEVICE_NAME=name) as bus:
            await bus.publish(topic, b"x")
        async with backend.connect(MSIGHT_EDGE_DEVICE_NAME=f"{name}.later") as bus, bus.subscribe(topic):
            await announced(registry, f"{name}.later")
        assert [one for one in registry.programs if one.name == name] == []


async def test_msight_announce_false_announces_nodes_only(backend, topic, name):
    node = Collect(NodeConfig(name=name, subscribe_topic_name=topic))
    async with backend.connect() as observer:
        registry = await observer.nodes()
        async with (
            backend.connect(MSIGHT_EDGE_DEVICE_NAME=f"{name}.silent", MSIGHT_ANNOUNCE="false") as silent,
            silent.subscribe(topic),
            running(silent, node),
        ):
            async with backend.connect(MSIGHT_EDGE_DEVICE_NAME=f"{name}.later") as bus, bus.subscribe(topic):
                await announced(registry, f"{name}.later")
            await registry.wait_until(lambda nodes: name in nodes)
        assert [one for one in registry.programs if one.name == f"{name}.silent"] == []


async def test_rates_and_the_busiest_topics(msight_simulation):
    async with msight_simulation.connect() as observer, msight_simulation.connect() as bus, asyncio.timeout(100):
        registry = await observer.nodes()
        async with bus.subscribe("busy.>") as pattern, bus.subscribe(["busy.59", "idle"]):
            for number in range(60):
                await bus.publish(f"busy.{number:02}", b"x")
            await registry.wait_until(lambda known: known.programs)
            last = registry.programs[0].last_heartbeat
            for _ in range(30):
                await bus.publish("busy.07", b"x")
                await bus.publish("busy.59", b"x")
                await asyncio.sleep(0.2)
            await registry.wait_until(lambda known: known.programs[0].last_heartbeat > last)
            (info,) = registry.programs
            assert info.last_heartbeat - last == pytest.approx(10)
            assert (len(info.topics), info.more_topics) == (MAX_PROGRAM_TOPICS, 62 - MAX_PROGRAM_TOPICS)
            both, received, sent, idle = info.topics[:4]
            assert (both.topic, both.rate_out, both.rate_in, both.published, both.subscribed) == (
                "busy.59",
                pytest.approx(3, abs=0.1),
                pytest.approx(3, abs=0.1),
                True,
                True,
            )
            assert (received.topic, received.rate_out, received.rate_in) == ("busy.>", 0, pytest.approx(6, abs=0.1))
            assert (sent.topic, sent.rate_out, sent.subscribed) == ("busy.07", pytest.approx(3, abs=0.1), False)
            assert (idle.topic, idle.rate_out) == ("busy.00", 0)
            assert pattern.stats.received == 120


async def test_of_several_patterns_the_rate_of_each_is_unknown(msight_simulation):
    async with msight_simulation.connect() as bus, bus.subscribe(["a.*", "b.*", "c"]), asyncio.timeout(100):
        registry = await bus.nodes()
        await bus.publish("a.x", b"x")
        await registry.wait_until(lambda known: known.programs)
        rates = {one.topic: one.rate_in for one in registry.programs[0].topics if one.subscribed}
        assert rates == {"a.*": None, "b.*": None, "c": 0}


@pytest.mark.parametrize("step", [1, -1])
async def test_a_pattern_has_a_rate_if_each_of_its_subscriptions_has_no_other_pattern(
    msight_simulation, monkeypatch, step
):
    async with msight_simulation.connect() as bus, asyncio.timeout(100):
        registry = await bus.nodes()
        async with bus.subscribe(["a.*", "b.*"]) as several, bus.subscribe("a.*") as one, bus.subscribe("c.*") as other:
            monkeypatch.setattr(bus.core, "subscriptions", [several, one, other][::step])  # a set has any order
            await registry.wait_until(lambda known: known.programs)
            monkeypatch.undo()
        assert {one.topic: one.rate_in for one in registry.programs[0].topics} == {"a.*": None, "b.*": None, "c.*": 0}


async def test_the_topics_of_nodes_are_not_announced_again(msight_simulation):
    async def forward(data):
        await bus.publish("beside", data)
        return data

    async with msight_simulation.connect() as bus, asyncio.timeout(1000):
        registry = await bus.nodes()
        source = Numbers(NodeConfig(name="source", publish_topic_name="in"), count=5)
        echo = Apply(NodeConfig(name="echo", subscribe_topic_name="in", publish_topic_name="out"), forward)
        sink = Collect(NodeConfig(name="sink", subscribe_topic_name="out"))
        async with running(bus, sink, source):
            await asyncio.sleep(30)
            assert registry.programs == ()
        await asyncio.sleep(30)
        assert registry.programs == ()  # nor after the nodes have ended
        async with running(bus, echo):
            await bus.publish("in", b"x")
            await registry.wait_until(lambda known: known.programs)
            assert topics_of(registry.programs[0]) == {"beside": (True, False)}
            assert {info.name for info in registry} == {"echo", "sink", "source"}


async def test_a_program_is_lost_by_the_rules_of_nodes(msight_simulation):
    async with msight_simulation.connect() as observer, asyncio.timeout(1000):
        registry = await observer.nodes()
        async with msight_simulation.connect() as bus, bus.subscribe("in"):
            await registry.wait_until(lambda known: known.programs)
            assert registry.programs[0].present
            await asyncio.sleep(60)
            assert registry.programs[0].status == "RUNNING"
            msight_simulation.disconnect(bus)
            heard = registry.programs[0].last_heartbeat
            await registry.wait_until(lambda known: known.programs[0].status == "LOST")
            assert 10 < observer.clock() - heard < 30
            msight_simulation.reconnect(bus)
            await registry.wait_until(lambda known: known.programs[0].status == "RUNNING")


async def test_a_program_whose_liveness_subscription_has_ended_subscribes_again(msight_simulation):
    async with msight_simulation.connect() as observer, asyncio.timeout(1000):
        registry = await observer.nodes()
        async with msight_simulation.connect() as bus, bus.subscribe("in"):
            await registry.wait_until(lambda known: known.programs)
            (first,) = registry.programs
            alive = ALIVE_TOPIC + first.instance
            (liveness,) = [one for one in bus.core.subscriptions if one.topics == (alive,)]
            await liveness.close()
            assert not await observer.core.has_subscribers(alive)
            await registry.wait_until(lambda known: known.programs[0].last_heartbeat > first.last_heartbeat)
            assert registry.programs[0].present
            assert await observer.core.has_subscribers(alive)


async def test_the_liveness_subscription_reports_no_event(msight_simulation):
    events: list = []
    async with msight_simulation.connect(on_event=events.append) as bus, bus.subscribe("in"), asyncio.timeout(100):
        registry = await bus.nodes()
        await registry.wait_until(lambda known: known.programs)
        assert registry.programs[0].present
        msight_simulation.disconnect()
        msight_simulation.reconnect()
        await until(lambda: seen(events, Reconnected))
        assert {event.topic for event in seen(events, Gap)} <= {"in", NODES_TOPIC}


KILLED = """
import asyncio, sys
import msight_bus
from msight_bus import program_announcer

program_announcer.INTERVAL = 3.0

async def main():
    async with msight_bus.connect() as bus, bus.subscribe(sys.argv[1]) as messages:
        async for message in messages:
            pass

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_a_killed_program_is_lost_once_the_broker_reports_no_subscription(request, kind, topic, name):
    backend = request.getfixturevalue(kind)
    variables = {"PATH": os.environ["PATH"], "MSIGHT_PUBSUB_BACKEND": kind, "MSIGHT_EDGE_DEVICE_NAME": name}
    async with backend.connect() as bus:
        registry = await bus.nodes()
        async with python("-c", KILLED, topic, env={**variables, **backend.env}) as process:
            info = await announced(registry, name, lambda info: info.present)
            process.kill()
            info = await announced(registry, name, lambda info: info.status == "LOST")
            assert (info.process, info.ended) == (process.pid, False)
            assert bus.clock() - info.last_heartbeat < 3 * 3


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_a_publisher_needs_no_connection_for_its_liveness(request, kind, topic, name):
    """A bus that only publishes has one connection; on NATS, subscriptions share that connection."""
    backend = request.getfixturevalue(kind)
    async with backend.connect() as observer, backend.connect(MSIGHT_EDGE_DEVICE_NAME=name) as bus:
        registry = await observer.nodes()
        await bus.publish(topic, b"x")
        info = await announced(registry, name)
        assert info.present == (kind == "nats")
        assert await observer.core.has_subscribers(ALIVE_TOPIC + info.instance) == info.present


# -- Kafka creates the topic for nodes only


async def test_on_kafka_a_program_never_creates_the_topic(kafka, topic, caplog, monkeypatch):
    name = f"_msight.{topic}"
    for module in ("program_announcer", "registry", "core"):
        monkeypatch.setattr(f"msight_bus.{module}.NODES_TOPIC", name)
    monkeypatch.setattr("msight_bus.program_announcer.INTERVAL", 0.1)
    monkeypatch.setattr("msight_bus.program_announcer.FIRST_AFTER", 0.1)
    caplog.set_level("DEBUG", logger="msight_bus")
    async with kafka.connect() as bus, bus.subscribe(topic):
        await bus.publish(topic, b"x")

        def tries():
            return sum("Program not announced" in record.getMessage() for record in caplog.records)

        await until(lambda: tries() >= 3)
        assert name not in await checks.topics_of(bus.settings)
        assert {one.levelname for one in caplog.records if name in one.getMessage()} == {"DEBUG"}
        async with kafka.connect(MSIGHT_ANNOUNCE="false") as observer:
            registry = await observer.nodes()  # creates the topic
            await registry.wait_until(lambda known: known.programs)
            async with administering(kafka) as admin:
                await admin.delete_topics([name])
            await until_deleted(observer, name)
            before = tries()
            await until(lambda: tries() >= before + 3)
            assert name not in await checks.topics_of(bus.settings)


async def until_deleted(bus, topic):
    async with asyncio.timeout(DEADLINE):
        while topic in await checks.topics_of(bus.settings):
            await asyncio.sleep(0.05)


# -- refusals

DENYING = {
    "redis": ["user alice on >secret ~* resetchannels &site.* &_msight.seq +@all", "user near on >secret ~* &* +@all"],
    "nats": [
        "authorization { users = [",
        '  {user: "alice", password: "secret", permissions: {publish: {deny: ["_msight.nodes"]},',
        '   subscribe: {deny: ["_msight.alive.>"]}}},',
        '  {user: "near", password: "secret"} ] }',
    ],
}


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_a_refusal_is_one_line_and_tried_again_on_the_next_connection(kind, caplog, monkeypatch):
    monkeypatch.setattr("msight_bus.program_announcer.INTERVAL", 0.1)
    monkeypatch.setattr("msight_bus.program_announcer.FIRST_AFTER", 0.1)
    caplog.set_level("INFO", logger="msight_bus")
    events: list = []

    def lines(text):
        return [record for record in caplog.records if text in record.getMessage()]

    with own_broker(kind, DENYING[kind]) as (_, backend):
        credentials = {f"{PREFIX[kind]}USERNAME": "alice", f"{PREFIX[kind]}PASSWORD": "secret"}
        async with FaultProxy(port_of(backend)) as proxy:
            restricted = Backend(kind, {**through(proxy, backend).env, **credentials})
            async with restricted.connect(events=events, **QUICKLY) as bus, bus.subscribe("site.a") as messages:
                await bus.publish("site.a", b"x")
                await until(lambda: lines("Program announcements stopped") and lines("No liveness"))
                for _ in range(20):
                    await bus.publish("site.a", b"x")
                    await asyncio.sleep(0.05)
                await take(messages, 21)
                assert len(lines("Program announcements stopped")) == len(lines("No liveness")) == 1
                await proxy.reset()
                await until(lambda: seen(events, Reconnected))
                await until(lambda: len(lines("Program announcements stopped")) == len(lines("No liveness")) == 2)
        assert {record.levelname for record in lines("announcements stopped") + lines("No liveness")} == {"INFO"}
        assert not seen(events, Refused)
        assert lines("_msight.nodes") == lines("Program announcements stopped")


# -- forms


def program_info(**fields):
    made = {
        "name": "edge",
        "instance": "1",
        "host": "here",
        "process": 7,
        "started_at": 5.0,
        "heartbeat_interval": 10.0,
    }
    return ProgramInfo(**{**made, "topics": (ProgramTopic(topic="cam", published=True),), **fields})


def observing(*payloads, **options):
    registry = Registry(None, **options)
    for payload in payloads:
        registry._observe(Message(NODES_TOPIC, payload))
    return registry


class EarlierInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The required fields of `NodeInfo`, which are those of the first version."""

    name: str
    instance: str
    type: str
    device: str
    status: NodeStatus
    started_at: float
    heartbeat_interval: float


def test_earlier_versions_ignore_programs_and_are_understood():
    with pytest.raises(msgspec.ValidationError, match="missing required field"):
        msgspec.json.decode(msgspec.json.encode(program_info()), type=EarlierInfo)
    first = {"name": "old", "instance": "1", "type": "T", "device": "d", "status": "RUNNING", "started_at": 1.0}
    first["heartbeat_interval"] = 10.0
    second = {**first, "name": "newer", "host": "h", "present": True, "publish_topic": "out", "subscribe_topic": "in"}
    registry = observing(json.dumps(first).encode(), json.dumps(second).encode(), msgspec.json.encode(program_info()))
    assert [(info.name, info.inputs, info.outputs) for info in registry] == [
        ("newer", ("in",), ("out",)),
        ("old", (), ()),
    ]
    assert [info.label for info in registry.programs] == ["edge[7]"]
    assert registry.ignored == 0


RIGHT = msgspec.to_builtins(program_info())


@pytest.mark.parametrize(
    "fields",
    [
        {"process": -1},
        {"process": 10**400},
        {"name": "a\x1b[2J"},
        {"host": "x" * 201},
        {"instance": "a b"},
        {"instance": "*"},
        {"heartbeat_interval": 0},
        {"heartbeat_interval": 1e9},
        {"status": "GREAT"},
        {"more_topics": -1},
        {"more_topics": 10**300},
        {"host": "a\u200bb"},
        {"topics": [{"topic": "t", "rate_out": 1e308}]},
        {"topics": [{"topic": "t"}] * (MAX_PROGRAM_TOPICS + 1)},
        {"topics": [{"topic": "\u202etxt"}]},
        {"topics": [{"topic": "t", "rate_in": -1}]},
        {"topics": [{"topic": "t", "published": "yes"}]},
        {"topics": {"t": {}}},
        {"padding": "x" * MAX_PROGRAM_BYTES},
        {"topics": None},
    ],
)
def test_hostile_announcements_of_programs_are_ignored_and_counted(fields):
    registry = observing(json.dumps({**RIGHT, **fields}).encode())
    assert (len(registry), registry.programs, registry.ignored) == (0, (), 1)


def test_a_topic_is_idle_unless_rates_are_announced():
    registry = observing(json.dumps({**RIGHT, "topics": [{"topic": "t"}]}).encode())
    ((topic,),) = [one.topics for one in registry.programs]
    assert (topic.published, topic.subscribed, topic.rate_out, topic.rate_in) == (False, False, 0.0, 0.0)


def test_programs_are_bounded_apart_from_nodes():
    node = {"name": "n", "type": "T", "device": "d", "status": "RUNNING", "started_at": 1.0, "heartbeat_interval": 10.0}
    registry = observing(json.dumps({**node, "instance": "1"}).encode())
    for number in range(MAX_NODES + 5):
        registry._observe(Message(NODES_TOPIC, msgspec.json.encode(program_info(instance=str(number)))))
    assert (len(registry), len(registry.programs), registry.ignored) == (1, MAX_NODES, 0)
    assert "0" not in {info.instance for info in registry.programs}


async def test_an_announcement_has_as_many_topics_as_fit_and_names_on_the_broker(memory):
    names = {"\N{GRINNING FACE}" * 195 + f"{number:04}": f"topic.{number:04}" for number in range(60)}
    variables = {"MSIGHT_TOPIC_MAP": json.dumps(names)}
    async with memory.connect(**variables) as observer, memory.connect(**variables) as bus:
        registry = await observer.nodes()
        for topic in names.values():
            await bus.publish(topic, b"x")
        async with observer.core.subscribe((NODES_TOPIC,)) as announcements:
            message = await anext(announcements)
        assert len(message.payload) <= MAX_PROGRAM_BYTES
        await registry.wait_until(lambda known: known.programs)
        (info,) = registry.programs
        assert {one.topic for one in info.topics} < set(names.values())
        assert 10 < len(info.topics) < MAX_PROGRAM_TOPICS
        assert len(info.topics) + info.more_topics == 60


async def test_20_000_topics_are_counted(msight_simulation):
    async with msight_simulation.connect() as bus, asyncio.timeout(100):
        registry = await bus.nodes()
        for number in range(20_000):
            await bus.publish(f"t{number}", b"")
        await registry.wait_until(lambda known: known.programs)
        (info,) = registry.programs
        assert (len(info.topics), info.more_topics) == (MAX_PROGRAM_TOPICS, 20_000 - MAX_PROGRAM_TOPICS)
