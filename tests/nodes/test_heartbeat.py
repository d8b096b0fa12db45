"""Announcements by the clock, and of what happens to a node."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from msight_bus import AuthenticationError, PublishTimeoutError, QueuePolicy
from msight_bus.announcements import NodeInfo
from msight_bus.nodes import NodeConfig
from msight_bus.topics import NODES_TOPIC
from tests.support.nodes import DEADLINE, Apply, Collect, Numbers, eventually, running


def sink(**fields):
    return Collect(
        NodeConfig(**{"name": "sink", "subscribe_topic_name": "in", "heartbeat_update_interval": 0.02, **fields})
    )


async def announcements(bus, count, listening=None):
    """The next ``count`` announcements, from the moment at which ``listening`` is set."""
    async with bus.core.subscribe((NODES_TOPIC,)) as messages, asyncio.timeout(DEADLINE):
        if listening is not None:
            listening.set()
        return [msgspec.json.decode((await anext(messages)).payload, type=NodeInfo) for _ in range(count)]


async def test_a_node_without_traffic_announces_itself_by_the_clock(memory):
    async with memory.connect() as bus, running(bus, sink()):
        heard = await announcements(bus, 6)
    assert [info.status for info in heard] == ["RUNNING"] * 6
    assert len({info.instance for info in heard}) == 1
    assert {info.metrics.messages_in for info in heard} == {0}
    last = heard[-1]
    # However late some of them were: at the start one, at the change to RUNNING one, then one an interval.
    assert last.last_heartbeat - last.started_at >= (len(heard) - 2) * 0.02 - 0.001


async def test_the_life_of_a_node_is_announced(memory):
    go_on = asyncio.Event()

    class Slow(Collect):
        async def on_start(self):
            await go_on.wait()

    node = Slow(NodeConfig(name="slow", subscribe_topic_name="in"))
    async with memory.connect() as bus:
        listening = asyncio.Event()
        hearing = asyncio.create_task(announcements(bus, 3, listening))
        await listening.wait()
        task = asyncio.create_task(node.run(bus))
        while not (announced := bus.core.backend._topics.known(NODES_TOPIC)) or not announced.counter.sequence:
            await asyncio.sleep(0)
        go_on.set()
        while announced.counter.sequence < 2:
            await asyncio.sleep(0)
        node.stop()
        await task
        heard = await hearing
    assert [info.status for info in heard] == ["REGISTERED", "RUNNING", "STOPPED"]
    assert [info.ended for info in heard] == [False, False, True]


async def test_figures_are_announced(memory):
    async def repeat(data):
        if data == b"bad":
            raise ZeroDivisionError
        return [data, data]

    node = Apply(
        NodeConfig(
            name="node",
            subscribe_topic_name="in",
            publish_topic_name="out",
            heartbeat_update_interval=0.02,
            action_on_error="continue",
        ),
        repeat,
    )
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, node):
            for payload in (b"a", b"b", b"bad"):
                await bus.publish("in", payload)
            await registry.wait_until(lambda nodes: "node" in nodes and nodes["node"].metrics.errors == 1)
            await registry.wait_until(lambda nodes: nodes["node"].metrics.latency_p99_ms is not None)
            seen = registry["node"].metrics
            assert (seen.messages_in, seen.messages_out) == (3, 4)
            assert 0 < seen.latency_p50_ms <= seen.latency_p99_ms < DEADLINE * 1000


async def eventually_handled(node, count):
    """``count`` messages are, or were, in the handler."""
    async with asyncio.timeout(DEADLINE):
        while node._node_run.meter.messages_in < count:
            await asyncio.sleep(0)


async def test_queue_and_drops_are_announced(memory):
    class Stuck(Collect):
        async def on_message(self, data):
            await go_on.wait()

    go_on = asyncio.Event()
    node = Stuck(
        NodeConfig(
            name="node", subscribe_topic_name="in", heartbeat_update_interval=0.02, queue=QueuePolicy.drop_newest(2)
        )
    )
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, node):
            await bus.publish("in", b"0")
            await eventually_handled(node, 1)
            for i in range(1, 6):
                await bus.publish("in", b"%d" % i)
            await registry.wait_until(lambda nodes: "node" in nodes and nodes["node"].metrics.dropped == 3)
            assert registry["node"].metrics.queued == 2
            go_on.set()


async def test_a_source_measures_the_handing_over_and_not_the_wait_for_its_sensor(memory):
    class Slow(Numbers):
        async def get_data(self):
            await asyncio.sleep(0.2)
            return await super().get_data()

    node = Slow(NodeConfig(name="source", publish_topic_name="out", heartbeat_update_interval=0.05))
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, node):
            await registry.wait_until(lambda nodes: "source" in nodes and nodes["source"].metrics.latency_p50_ms)
            assert registry["source"].metrics.latency_p50_ms < 200
            await registry.wait_until(lambda nodes: nodes["source"].metrics.rate_out > 0)


async def test_a_stuck_handler_is_announced_and_its_recovery(memory):
    class Stuck(Collect):
        async def on_message(self, data):
            await go_on.wait()

    go_on = asyncio.Event()
    node = Stuck(
        NodeConfig(name="node", subscribe_topic_name="in", heartbeat_tolerance=0.02, heartbeat_checking_duration=0.01)
    )
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, node):
            await bus.publish("in", b"")
            await registry.wait_until(lambda nodes: "node" in nodes and nodes["node"].status == "ERROR")
            assert not registry["node"].ended
            go_on.set()
            await registry.wait_until(lambda nodes: nodes["node"].status == "RUNNING")


async def test_a_handler_may_take_long_where_no_tolerance_is_set(memory):
    class Stuck(Collect):
        async def on_message(self, data):
            await go_on.wait()

    go_on = asyncio.Event()
    node = Stuck(NodeConfig(name="node", subscribe_topic_name="in", heartbeat_checking_duration=0.01))
    async with memory.connect() as bus, running(bus, node):
        await bus.publish("in", b"")
        assert not any(task.get_name().startswith(f"msight_bus watch {node.name}") for task in asyncio.all_tasks())
        go_on.set()


@pytest.mark.parametrize(
    ("error", "text", "asked_again"),
    [
        (AuthenticationError("not you"), "Not permitted to publish", False),
        (PublishTimeoutError("broker away"), "Heartbeats are not published", True),
    ],
)
async def test_a_node_works_though_it_cannot_announce_itself(memory, caplog, error, text, asked_again):
    asked = 0
    news = asyncio.Event()
    async with memory.connect() as bus:
        publish = bus.core.publish

        async def refuse(topic, payload, *rest):
            nonlocal asked
            if topic == NODES_TOPIC:
                asked += 1
                news.set()
                raise error
            await publish(topic, payload, *rest)

        bus.core.publish = refuse
        node = sink(heartbeat_update_interval=0.001)
        async with running(bus, node):
            await bus.publish("in", b"works")
            assert await node.until(1) == [b"works"]
            if asked_again:
                await eventually(news, lambda: asked >= 5)
    assert (asked > 1) is asked_again
    assert caplog.text.count(text) == 1


async def test_one_stuck_handler_among_several_is_announced(msight_simulation):
    class Stuck(Collect):
        async def on_message(self, data):
            if data == b"stuck":
                await go_on.wait()
            await asyncio.sleep(0.5)

    go_on = asyncio.Event()
    node = Stuck(
        NodeConfig(
            name="node", subscribe_topic_name="in", concurrency=2, heartbeat_tolerance=5, heartbeat_checking_duration=1
        )
    )
    async with msight_simulation.connect() as bus, running(bus, node):
        await bus.publish("in", b"stuck")
        for _ in range(20):
            await bus.publish("in", b"")
            await asyncio.sleep(0.5)
        assert node.status == "ERROR"
        go_on.set()
        await asyncio.sleep(2)
        assert node.status == "RUNNING"


@pytest.mark.parametrize("kind", ["bytes", "list", "step"])
async def test_a_node_that_waits_for_the_broker_is_not_busy(msight_simulation, kind, caplog):
    async def step(data):
        await asyncio.sleep(1)
        return data

    fields = {"publish_topic_name": "out", "heartbeat_tolerance": 5.0, "heartbeat_checking_duration": 1.0}
    node = (
        Apply(NodeConfig(name="node", subscribe_topic_name="in", **fields), step)
        if kind == "step"
        else Given(NodeConfig(name="node", **fields), kind)
    )
    async with msight_simulation.connect() as bus, running(bus, node):
        await bus.publish("in", b"x")
        await asyncio.sleep(0.5)
        msight_simulation.disconnect(bus)
        for _ in range(60):
            await asyncio.sleep(1)
            assert node.status == "RUNNING"
        assert node.left == 1
        msight_simulation.reconnect(bus)
    assert "No output for" not in caplog.text


async def test_a_source_that_waits_after_an_error_is_not_busy(msight_simulation):
    class Broken(Numbers):
        async def get_data(self):
            raise OSError("unplugged")

    fields = {"heartbeat_tolerance": 5.0, "heartbeat_checking_duration": 1.0, "action_on_error": "continue"}
    node = Broken(NodeConfig(name="node", publish_topic_name="out", **fields))
    async with msight_simulation.connect() as bus, running(bus, node):
        for _ in range(60):
            await asyncio.sleep(1)
            assert node.status == "RUNNING"


async def test_announcements_that_were_missed_are_skipped(memory):
    async with memory.connect() as bus, running(bus, sink()):
        await announcements(bus, 1)
        time.sleep(0.5)
        heard = await announcements(bus, 6)
    # Without skipping, those of half a second come at once.
    assert heard[-1].last_heartbeat - heard[0].last_heartbeat >= (len(heard) - 2) * 0.02 - 0.001


class Given(Numbers):
    """Publishes a number each second, as ``bytes`` or in a list."""

    def __init__(self, config, kind):
        super().__init__(config)
        self.kind = kind

    async def get_data(self):
        await asyncio.sleep(1)
        number = await super().get_data()
        return number if self.kind == "bytes" else [number]


async def test_a_broker_that_is_away_does_not_delay_the_end(msight_simulation, caplog):
    async with msight_simulation.connect() as bus:
        node = sink(heartbeat_update_interval=10)
        async with running(bus, node):
            msight_simulation.disconnect(bus)
            await asyncio.sleep(1)
        msight_simulation.reconnect(bus)
    assert "Last announcement not published" in caplog.text


async def test_a_change_during_an_announcement_is_announced_after_it(msight_simulation):
    class Stuck(Collect):
        async def on_message(self, data):
            await go_on.wait()

    go_on = asyncio.Event()
    node = Stuck(
        NodeConfig(name="node", subscribe_topic_name="in", heartbeat_tolerance=5, heartbeat_checking_duration=1)
    )
    async with msight_simulation.connect() as bus, msight_simulation.connect() as observer, running(bus, node):
        registry = await observer.nodes()
        await asyncio.sleep(6)
        await observer.publish("in", b"")
        await asyncio.sleep(2)
        msight_simulation.disconnect(bus)
        await asyncio.sleep(5)  # a heartbeat waits, with the status of before
        assert node.status == "ERROR"
        msight_simulation.reconnect(bus)
        await asyncio.sleep(2)
        assert registry["node"].status == "ERROR"
        go_on.set()


async def test_an_observer_whose_own_loop_was_held_does_not_call_others_lost(backend):
    statuses = set()
    async with backend.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, sink(subscribe_topic_name="held.in", heartbeat_update_interval=0.2)):
            await registry.wait_until(lambda nodes: "sink" in nodes and nodes["sink"].status == "RUNNING")
            before = registry["sink"].last_heartbeat
            time.sleep(2)
            while registry["sink"].last_heartbeat == before:
                statuses.add(registry["sink"].status)
                await asyncio.sleep(0)
    assert statuses == {"RUNNING"}
