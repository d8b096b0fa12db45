"""The registry of nodes, built from announcements, on every backend."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus import AuthenticationError, ClosedError, Message
from msight_bus.announcements import NodeInfo, NodeStatus, ProgramInfo
from msight_bus.known_programs import FORGET_AFTER, MAX_NODES
from msight_bus.nodes import NodeConfig
from msight_bus.registry import Registry
from msight_bus.topics import ALIVE_TOPIC, NODES_TOPIC
from tests.support.nodes import DEADLINE, Collect, Numbers, running, start


def info(name="node", instance="1", **fields):
    made = {
        "type": "Sink",
        "device": "edge-1",
        "host": "here",
        "status": NodeStatus.RUNNING,
        "started_at": 5.0,
        "heartbeat_interval": 10.0,
    }
    return NodeInfo(**{"name": name, "instance": instance, **made, **fields})


def announcement(made):
    return msgspec.json.encode(made)


async def announce(bus, *infos):
    for made in infos:
        await bus.core.publish(NODES_TOPIC, announcement(made))


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


async def test_a_node_is_listed_with_its_configuration_and_metrics(backend, topic):
    config = NodeConfig(
        name="counter", subscribe_topic_name=topic, heartbeat_update_interval=0.05, instance_id="worker-1"
    )
    async with backend.connect() as bus, backend.connect() as observer:
        registry = await observer.nodes()
        sink = Collect(config)
        async with running(bus, sink):
            await registry.wait_until(lambda nodes: "counter" in nodes and nodes["counter"].status == "RUNNING")
            await bus.publish(topic, b"x")
            await sink.until(1)
            await registry.wait_until(lambda nodes: nodes["counter"].metrics.messages_in == 1)
            seen = registry["counter"]
            assert (seen.type, seen.subscribe_topic, seen.publish_topic) == ("Collect", topic, None)
            assert seen.group_id == ("counter_group" if bus.capabilities.persistence else None)
            assert (seen.heartbeat_interval, seen.instance_id) == (0.05, "worker-1")
            assert seen.last_heartbeat >= seen.started_at - 1
        await registry.wait_until(lambda nodes: nodes["counter"].status == "STOPPED")
        assert registry["counter"].ended


async def test_a_late_observer_lists_all_nodes_after_one_interval(memory):
    nodes = [
        Numbers(NodeConfig(name=f"n{i}", publish_topic_name="out", heartbeat_update_interval=0.02)) for i in range(3)
    ]
    async with memory.connect() as bus, running(bus, *nodes):
        registry = await bus.nodes()
        async with asyncio.timeout(DEADLINE):
            await registry.wait_until(lambda known: len(known) == 3)
        assert [node.name for node in registry] == ["n0", "n1", "n2"]


async def test_two_workers_of_one_name_are_both_listed(memory):
    workers = [Collect(NodeConfig(name="worker", subscribe_topic_name="in", group_id="workers")) for _ in range(2)]
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, *workers):
            await registry.wait_until(lambda nodes: len(nodes.instances("worker")) == 2)
            one, other = registry.instances("worker")
            assert one.instance != other.instance
            assert registry["worker"] in (one, other)


async def test_the_last_status_of_a_failed_node_is_error(memory):
    class Broken(Collect):
        async def on_message(self, data):
            raise ZeroDivisionError

    async with memory.connect() as bus:
        registry = await bus.nodes()
        task = await start(bus, Broken(NodeConfig(name="broken", subscribe_topic_name="in")))
        await bus.publish("in", b"")
        with pytest.raises(ZeroDivisionError):
            await task
        await registry.wait_until(lambda nodes: nodes["broken"].status == "ERROR")
        assert registry["broken"].ended


async def test_the_first_read_subscribes_in_the_background(memory):
    async with memory.connect() as bus:
        registry = bus.nodes()
        assert list(registry) == []
        async with asyncio.timeout(DEADLINE):
            while "node" not in registry:
                await announce(bus, info())
                await asyncio.sleep(0)
        assert bus.nodes() is registry
        assert "node RUNNING" in repr(registry)


def test_reading_without_an_event_loop_is_possible(memory):
    async def make():
        async with memory.connect() as bus:
            return bus.nodes()

    registry = asyncio.run(make())
    assert len(registry) == 0
    with pytest.raises(KeyError):
        registry["node"]


async def test_a_node_without_heartbeats_for_three_intervals_is_lost(memory):
    clock = Clock()
    async with memory.connect() as bus:
        registry = await Registry(bus.core, clock=clock)
        await announce(bus, info("alive"), info("gone", status=NodeStatus.STOPPED, ended=True))
        await registry.wait_until(lambda nodes: len(nodes) == 2)
        clock.now += 30
        assert [node.status for node in registry] == ["RUNNING", "STOPPED"]
        clock.now += 0.1
        assert [node.status for node in registry] == ["LOST", "STOPPED"]
        await announce(bus, info("alive"))
        await registry.wait_until(lambda nodes: nodes["alive"].status == "RUNNING")
        clock.now += FORGET_AFTER + 1
        assert [node.name for node in registry] == []
        await registry.close()


async def test_invalid_announcements_are_ignored_and_counted(memory):
    deep = b'{"name":' + b"[" * 5000
    right = json.loads(announcement(info()))
    garbage = [
        b"",
        b"\xff\xfe",
        b"[]",
        deep,
        json.dumps({**right, "padding": "x" * 9000}).encode(),
        json.dumps({**right, "device": "x" * 9000}).encode(),
        json.dumps({**right, "name": "a\x1b[2J"}).encode(),
        json.dumps({**right, "device": "edge\n"}).encode(),
        json.dumps({**right, "status": "GREAT"}).encode(),
        json.dumps({**right, "heartbeat_interval": 0}).encode(),
        json.dumps({**right, "metrics": {"queued": -1}}).encode(),
        json.dumps({**right, "started_at": "yesterday"}).encode(),
    ]
    async with memory.connect() as bus:
        registry = await bus.nodes()
        for payload in garbage:
            await bus.core.publish(NODES_TOPIC, payload)
        await announce(bus, info())
        await registry.wait_until(lambda nodes: "node" in nodes)
        assert registry.ignored == len(garbage)
        assert len(registry) == 1


async def test_an_announced_lost_is_ignored(memory):
    """Whether a node or program is lost is the observer's finding."""
    common = {"name": "edge", "host": "h", "started_at": 0.0, "heartbeat_interval": 10.0, "topics": ()}
    lost = NodeStatus.LOST
    async with memory.connect() as bus:
        registry = await bus.nodes()
        await announce(
            bus,
            ProgramInfo(instance="1", process=1, status=lost, **common),
            ProgramInfo(instance="2", process=2, status=lost, ended=True, **common),
            info("ended", status=lost, ended=True),
            info("running", status=lost),
        )
        await registry.wait_until(lambda nodes: "running" in nodes)
        assert [node.status for node in registry] == ["STOPPED", "RUNNING"]
        assert {one.process: one.status for one in registry.programs} == {1: "RUNNING", 2: "STOPPED"}


async def test_fields_of_a_newer_version_are_ignored(memory):
    async with memory.connect() as bus:
        registry = await bus.nodes()
        newer = {**json.loads(announcement(info())), "mood": {"class": "os.system"}}
        await bus.core.publish(NODES_TOPIC, json.dumps(newer).encode())
        await registry.wait_until(lambda nodes: "node" in nodes)


@given(st.binary(max_size=200))
def test_no_payload_breaks_the_registry(payload):
    registry = Registry(None)
    registry._observe(Message(NODES_TOPIC, payload))
    registry._observe(Message(NODES_TOPIC, announcement(info())[: len(payload)] + payload))
    assert registry.ignored >= 1


def test_the_registry_is_bounded_and_evicts_the_longest_silent_node_first():
    clock = Clock()
    registry = Registry(None, clock=clock)
    registry._observe(Message(NODES_TOPIC, announcement(info("lasting"))))
    for i in range(MAX_NODES + 10):
        registry._observe(Message(NODES_TOPIC, announcement(info(instance=str(i)))))
        if i == MAX_NODES // 2:
            registry._observe(Message(NODES_TOPIC, announcement(info("lasting"))))
    assert len(registry) == MAX_NODES
    assert "lasting" in registry
    assert "0" not in {seen.instance for seen in registry}


def test_the_next_run_on_a_host_replaces_a_lost_run_only():
    clock = Clock()
    registry = Registry(None, clock=clock)

    def hear(instance, host="here"):
        registry._observe(Message(NODES_TOPIC, announcement(info(instance=instance, host=host))))

    def known():
        return {seen.instance: seen.status for seen in registry}

    for instance, host in (("lost", "here"), ("neighbour", "here"), ("elsewhere", "there"), ("unknown", "")):
        hear(instance, host)
    clock.now += 40
    hear("neighbour")
    assert known() == {"lost": "LOST", "neighbour": "RUNNING", "elsewhere": "LOST", "unknown": "LOST"}
    hear("next")
    hear("next.unknown", "")
    assert known() == {
        "neighbour": "RUNNING",
        "next": "RUNNING",
        "elsewhere": "LOST",
        "unknown": "LOST",
        "next.unknown": "RUNNING",
    }


@pytest.mark.parametrize("ended", [False, True])
def test_a_worker_that_is_started_again_replaces_its_earlier_run(ended):
    clock = Clock()
    registry = Registry(None, clock=clock)

    def hear(instance, started_at, **fields):
        clock.now += 1
        made = info(instance=instance, started_at=started_at, last_heartbeat=clock.now, **fields)
        registry._observe(Message(NODES_TOPIC, announcement(made)))

    def known():
        return [seen.instance for seen in registry]

    worker = {"instance_id": "worker-1"}
    others = {"other": {"instance_id": "worker-2"}, "none": {}, "host": {**worker, "host": "there"}}
    for instance, fields in {**others, "name": {**worker, "name": "other"}, "old": worker}.items():
        hear(instance, clock.now, ended=ended, **fields)
    assert known() == ["other", "none", "host", "old", "name"]
    hear("new", clock.now + 1, **worker)
    hear("next-none", clock.now + 1)
    assert known() == ["other", "none", "host", "new", "next-none", "name"]
    clock.now += FORGET_AFTER + 1
    hear("new", 1005.0, **worker)
    assert known() == ["new"]


@pytest.mark.parametrize("late", [True, False], ids=["late observer", "observer"])
def test_two_running_workers_of_one_identity_are_both_listed(late):
    """A late observer hears both for the first time, the one that was started first in either order."""
    for order in (("old", "new"), ("new", "old")):
        clock = Clock()
        registry = Registry(None, clock=clock)
        heard = [("old", 1.0), *((one, 20.0) for one in order)]
        for instance, sent_at in heard[late:]:
            clock.now += 1
            started_at = {"old": 0.0, "new": 10.0}[instance]
            made = info(instance=instance, instance_id="w", started_at=started_at, last_heartbeat=sent_at)
            registry._observe(Message(NODES_TOPIC, announcement(made)))
        assert [seen.instance for seen in registry] == ["old", "new"]


def test_heartbeats_are_by_the_observers_clock_and_the_latest_instance_is_returned():
    registry = Registry(None, clock=Clock())
    for instance, received_at in (("1", 5.0), ("2", 6.0), ("1", 7.0)):
        made = info(instance=instance, last_heartbeat=1e12)
        registry._observe(Message(NODES_TOPIC, announcement(made), received_at=received_at))
    assert (registry["node"].instance, registry["node"].last_heartbeat) == ("1", 7.0)


async def test_a_closed_registry_keeps_its_nodes_and_raises_closed_error(memory):
    async with memory.connect() as bus:
        registry = await bus.nodes()
        await announce(bus, info())
        await registry.wait_until(lambda nodes: "node" in nodes)
        waiting = asyncio.create_task(registry.wait_until(lambda nodes: False))
        await asyncio.sleep(0)
        await registry.close()
        with pytest.raises(ClosedError):
            await waiting
        assert "node" in registry
        with pytest.raises(ClosedError):
            await registry
    with pytest.raises(ClosedError):
        await Registry(bus.core)


async def test_a_drain_closes_the_registry(memory):
    async with memory.connect() as bus:
        await bus.nodes()
        await bus.drain(DEADLINE)


async def test_a_refusal_is_raised_by_await_and_otherwise_logged(memory, monkeypatch, caplog):
    async with memory.connect() as bus:

        async def refuse(selection, inbox):
            raise AuthenticationError("no permission for _msight.nodes")

        monkeypatch.setattr(bus.core.backend, "subscribe", refuse)
        registry = bus.nodes()
        assert len(registry) == 0
        while not caplog.records:
            await asyncio.sleep(0)
        with pytest.raises(AuthenticationError):
            await registry
        monkeypatch.undo()
        assert await registry is registry


# -- asking the broker

KILLED = """
import sys
from msight_bus import NodeConfig, SinkNode, run_nodes

class Sink(SinkNode):
    async def on_message(self, data):
        pass

run_nodes(Sink(NodeConfig(name="killed", subscribe_topic_name=sys.argv[1], heartbeat_update_interval=3)))
"""


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_a_killed_node_is_lost_once_the_broker_reports_no_subscription(request, kind, topic):
    """After one missed interval, not three; another node of the same name on the same machine stays RUNNING."""
    backend = request.getfixturevalue(kind)

    async def started():
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, topic, env=environment, stdout=asyncio.subprocess.DEVNULL
        )

    def heartbeats(info):
        return (info.last_heartbeat - info.started_at) / 3

    environment = {"PATH": os.environ["PATH"], "MSIGHT_PUBSUB_BACKEND": kind, **backend.env}
    async with backend.connect() as bus:
        registry = await bus.nodes()
        processes = [await started(), await started()]
        try:
            await registry.wait_until(
                lambda nodes: sum(info.present and heartbeats(info) >= 1 for info in nodes.instances("killed")) == 2
            )
            processes[0].kill()
            await registry.wait_until(
                lambda nodes: sorted(info.status for info in nodes.instances("killed")) == ["LOST", "RUNNING"]
            )
            heard = {info.status: info.last_heartbeat for info in registry.instances("killed")}
            assert (
                bus.clock() - heard["LOST"] < 3 * 3
            )  # a heartbeat that is missed three times would be the other reason
            processes.append(await started())  # takes the place of the one that is lost
            await registry.wait_until(
                lambda nodes: [info.status for info in nodes.instances("killed")] == ["RUNNING"] * 2
            )
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def test_the_broker_is_asked_for_a_subscription(backend, topic):
    async with backend.connect() as bus, backend.connect() as other:
        if bus.capabilities.persistence:
            assert await bus.core.has_subscribers(topic) is None
            return
        assert await bus.core.has_subscribers(topic) is False
        async with other.subscribe(topic):
            assert await bus.core.has_subscribers(topic) is True
        assert await bus.core.has_subscribers(topic) is False


async def test_a_node_without_a_subscription_is_lost_until_its_next_heartbeat(msight_simulation):
    async with msight_simulation.connect() as bus:
        registry = await bus.nodes()
        await announce(bus, info(present=True))
        await registry.wait_until(lambda nodes: "node" in nodes)
        await asyncio.sleep(10)
        assert registry["node"].status == "RUNNING"
        await asyncio.sleep(8)
        assert registry["node"].status == "LOST"
        await announce(bus, info(present=True))
        await registry.wait_until(lambda nodes: nodes["node"].status == "RUNNING")


async def test_the_broker_is_asked_twice_before_a_node_is_lost(msight_simulation):
    async with msight_simulation.connect() as bus, asyncio.timeout(100):
        registry = await bus.nodes()
        await announce(bus, info(present=True))
        await registry.wait_until(lambda nodes: "node" in nodes)
        await asyncio.sleep(14)  # the first time is over, the second comes 2 s after it
        async with bus.core.subscribe((f"{ALIVE_TOPIC}1",)):
            await asyncio.sleep(4)
            assert registry["node"].status == "RUNNING"
        await registry.wait_until(lambda nodes: nodes["node"].status == "LOST")


async def test_a_heartbeat_between_the_two_times_counts(msight_simulation):
    async with msight_simulation.connect() as bus:
        registry = await bus.nodes()
        await announce(bus, info(present=True))
        await registry.wait_until(lambda nodes: "node" in nodes)
        await asyncio.sleep(14)
        await announce(bus, info(present=True))
        await asyncio.sleep(4)
        assert registry["node"].status == "RUNNING"


async def test_a_node_that_cannot_be_asked_for_is_lost_after_three_intervals(msight_simulation):
    async with msight_simulation.connect() as bus:
        registry = await bus.nodes()
        await announce(bus, info(present=False))
        await registry.wait_until(lambda nodes: "node" in nodes)
        await asyncio.sleep(29)
        assert registry["node"].status == "RUNNING"
        await asyncio.sleep(2)
        assert registry["node"].status == "LOST"


async def test_a_silent_node_with_a_subscription_is_lost_after_three_intervals(msight_simulation):
    async with msight_simulation.connect() as bus, bus.core.subscribe((f"{ALIVE_TOPIC}1",)):
        registry = await bus.nodes()
        await announce(bus, info(present=True))
        await registry.wait_until(lambda nodes: "node" in nodes)
        await asyncio.sleep(29)
        assert registry["node"].status == "RUNNING"
        await asyncio.sleep(2)
        assert registry["node"].status == "LOST"


async def test_an_observer_that_was_disconnected_does_not_ask_the_broker(msight_simulation):
    async with msight_simulation.connect() as bus:
        registry = await bus.nodes()
        await announce(bus, info(present=True))
        await registry.wait_until(lambda nodes: "node" in nodes)
        await asyncio.sleep(9)
        msight_simulation.disconnect(bus)
        msight_simulation.reconnect(bus)
        await asyncio.sleep(10)
        assert registry["node"].status == "RUNNING"
        await asyncio.sleep(8)
        assert registry["node"].status == "LOST"


async def test_a_refused_liveness_subscription_is_logged_once(memory, caplog, monkeypatch):
    caplog.set_level("INFO")
    async with memory.connect() as bus:
        subscribe = bus.core.backend.subscribe

        async def refuse(selection, inbox):
            if selection.name.startswith(ALIVE_TOPIC):
                raise AuthenticationError("no permission")
            return await subscribe(selection, inbox)

        monkeypatch.setattr(bus.core.backend, "subscribe", refuse)
        registry = await bus.nodes()
        async with running(bus, Collect(NodeConfig(name="n", subscribe_topic_name="in"))):
            await registry.wait_until(lambda nodes: "n" in nodes and nodes["n"].status == "RUNNING")
            assert not registry["n"].present
    assert caplog.text.count("missed heartbeats only: no permission") == 1


def test_topics_of_an_announcement(memory):
    """Topics that earlier versions cannot announce are read from the new fields, those of earlier versions from the old ones."""
    registry = Registry(None)

    def observed(**fields):
        registry._observe(Message(NODES_TOPIC, announcement(info(**fields))))
        return registry["node"]

    earlier = observed(publish_topic="out", subscribe_topic="in")
    assert (earlier.output, earlier.inputs, earlier.more_inputs) == ("out", ("in",), 0)
    slashed = observed(output="a/b", inputs=("c/d",))
    assert (slashed.publish_topic, slashed.subscribe_topic) == ("a/b", "c/d")
    several = observed(inputs=("a", "b.*"), subscribe_topic="a")
    assert (several.subscribe_topic, several.inputs) == (None, ("a", "b.*"))


@pytest.mark.parametrize(
    "fields", [{"inputs": ["a"] * 4}, {"inputs": ["\x1b[2J"]}, {"output": "x" * 201}, {"more_inputs": -1}]
)
def test_topics_that_are_not_bounded_or_not_printable_are_ignored(fields):
    registry = Registry(None)
    fields = {**msgspec.to_builtins(info()), **fields}
    registry._observe(Message(NODES_TOPIC, json.dumps(fields).encode()))
    assert (len(registry), registry.ignored) == (0, 1)
