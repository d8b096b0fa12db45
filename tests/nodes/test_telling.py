"""What a node says: its first line, what it loses, its errors, and its last line."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from msight_bus import QueuePolicy, connect
from msight_bus.events import DeadlineMissed, Disconnected, Gap, Reconnected
from msight_bus.nodes import NodeConfig
from msight_bus.tally import Tally
from tests.support.nodes import Apply, Collect, Numbers, eventually, running, start

INTERVAL = 0.2


def sink(**fields):
    return Collect(
        NodeConfig(**{"name": "sink", "subscribe_topic_name": "in", "heartbeat_update_interval": INTERVAL, **fields})
    )


async def echo(data):
    return data


def lines(caplog, start):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(start)]


async def lose(bus, topic, count):
    """Publish so that ``count`` messages are missing before the last one."""
    await bus.publish(topic, b"before")
    bus.core.backend._topics.known(topic).counter.sequence += count
    await bus.publish(topic, b"after")


async def test_the_first_line_names_broker_topics_and_group(backend, topic, caplog):
    caplog.set_level(logging.INFO)
    node = Apply(
        NodeConfig(name="n", subscribe_topic_name=topic, publish_topic_name=f"{topic}.out", group_id="g"), echo
    )
    async with backend.connect(MSIGHT_STRICT="false") as bus:
        if not bus.capabilities.load_balancing:
            with pytest.warns(match="cannot share"):
                async with running(bus, node):
                    pass
        else:
            async with running(bus, node):
                pass
        address = bus.settings.address
    (line,) = lines(caplog, "Running on ")
    assert line == f"Running on {address}: {topic} -> {topic}.out, group g"
    assert address == "memory" or re.fullmatch(r"(redis|nats|kafka)://(127\.0\.0\.1|localhost):\d+", address)


async def test_gaps_are_told_at_the_first_and_then_once_an_interval_with_their_sum(memory, caplog):
    node = sink()
    async with memory.connect() as bus, running(bus, node):
        for count in (3, 4, 5):
            await lose(bus, "in", count)
        await node.until(6)
        await asyncio.sleep(0)
        assert lines(caplog, "Messages missing") == ["Messages missing: 12 on in (lost)"]
        for count in (7, 8):
            await lose(bus, "in", count)
        await node.until(10)
        assert len(lines(caplog, "Messages missing")) == 1
        while len(lines(caplog, "Messages missing")) < 2:
            await asyncio.sleep(0.01)
        metrics = node.metrics()
        assert (metrics.gaps, metrics.missing) == (5, 27)
    _, second = lines(caplog, "Messages missing")
    assert re.fullmatch(r"Messages missing: 15 on in in \d+ s \([\d.]+/s\), 27 so far \(lost\)", second)


async def test_the_gaps_of_a_node_are_in_the_registry(memory):
    node = sink()
    async with memory.connect() as bus:
        registry = await bus.nodes()
        async with running(bus, node):
            await lose(bus, "in", 3)
            await registry.wait_until(lambda nodes: "sink" in nodes and nodes["sink"].metrics.missing == 3)
            assert registry["sink"].metrics.gaps == 1


async def test_drops_are_told_at_the_first_and_then_once_an_interval(memory, caplog):
    go_on = asyncio.Event()

    class Slow(Collect):
        async def on_message(self, data):
            await go_on.wait()
            await super().on_message(data)

    node = Slow(
        NodeConfig(
            name="slow", subscribe_topic_name="in", queue=QueuePolicy.latest(1), heartbeat_update_interval=INTERVAL
        )
    )
    async with memory.connect() as bus, running(bus, node):
        for i in range(5):
            await bus.publish("in", b"%d" % i)
        await asyncio.sleep(0.01)
        assert lines(caplog, "Inputs dropped") == ["Inputs dropped, slower than the stream: 4 on in (latest)"]
        for i in range(5):
            await bus.publish("in", b"%d" % i)
        while len(lines(caplog, "Inputs dropped")) < 2:
            await asyncio.sleep(0.01)
        assert node.metrics().dropped == 8 or node.metrics().dropped == 9
        go_on.set()


async def test_the_last_line_sums_up(memory, caplog):
    caplog.set_level(logging.INFO)

    async def divide(data):
        return b"%d" % (10 // int(data))

    node = Apply(
        NodeConfig(name="n", subscribe_topic_name="in", publish_topic_name="out", action_on_error="continue"), divide
    )
    async with memory.connect() as bus, running(bus, node):
        for payload in (b"1", b"0", b"5"):
            await bus.publish("in", payload)
        await lose(bus, "in", 2)
        while node.metrics().messages_in < 5:
            await asyncio.sleep(0.001)
    (line,) = lines(caplog, "Ended with status ")
    assert re.fullmatch(
        r"Ended with status STOPPED\. In: 5, out: 2, dropped: 0, missing: 2, undecodable: 0, errors: 3, left: 0, "
        r"seconds: \d+\.\d\.",
        line,
    )


async def test_what_a_node_leaves_at_its_end_is_left_and_not_dropped(memory, caplog):
    caplog.set_level(logging.INFO)

    class Hangs(Collect):
        async def on_message(self, data):
            await asyncio.Event().wait()

    node = Hangs(NodeConfig(name="hangs", subscribe_topic_name="in"))
    async with memory.connect() as bus:
        task = await start(bus, node)
        for i in range(4):
            await bus.publish("in", b"%d" % i)
        while node.metrics().messages_in < 1:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait((task,))
    (line,) = lines(caplog, "Ended with status ")
    assert "In: 1, out: 0, dropped: 0, missing: 0, undecodable: 0, errors: 0, left: 4, " in line
    assert lines(caplog, "Inputs dropped") == []


async def test_one_message_can_be_followed_at_debug(memory, caplog):
    caplog.set_level(logging.DEBUG)
    nodes = [
        sink(name="sink", subscribe_topic_name="b", logging_level="DEBUG"),
        Apply(NodeConfig(name="step", subscribe_topic_name="a", publish_topic_name="b", logging_level="DEBUG"), echo),
    ]
    async with memory.connect() as bus, running(bus, *nodes):
        await bus.publish("a", b"xyz", key="lane 3")
        await nodes[0].until(1)
    text = "\n".join(f"{record.name}: {record.getMessage()}" for record in caplog.records)
    assert "nodes.step: Took Message(topic='a', 3 bytes, sequence=1) of session " in text
    published = re.search(r"nodes.step: Published on b: 3 bytes, sequence 1 of session (\d+)\.", text)
    assert f"nodes.sink: Took Message(topic='b', 3 bytes, sequence=1) of session {published[1]}." in text


async def test_an_error_is_told_with_its_traceback_once_and_then_counted(memory, caplog):
    async def fail(data):
        raise ZeroDivisionError(data.decode())

    node = Apply(
        NodeConfig(
            name="n",
            subscribe_topic_name="in",
            publish_topic_name="out",
            action_on_error="continue",
            heartbeat_update_interval=60,
        ),
        fail,
    )
    async with memory.connect() as bus, running(bus, node):
        for i in range(100):
            await bus.publish("in", b"%d" % i)
        while node.metrics().errors < 100:
            await asyncio.sleep(0.001)
        told = [record for record in caplog.records if record.exc_info]
        assert len(told) == 1
        assert told[0].getMessage().endswith("ZeroDivisionError: 0")
    told = [record.getMessage() for record in caplog.records if record.exc_info]
    assert len(told) == 2  # at the end what was not told yet
    assert "99" in told[1]
    assert "100 so far" in told[1]


# -- events


class Watching(Collect):
    def __init__(self, config):
        super().__init__(config)
        self.events = []

    def on_event(self, event):
        self.events.append(event)
        self.came.set()


async def test_a_node_gets_the_events_of_its_own_input(memory):
    config = {"heartbeat_update_interval": INTERVAL, "deadline": 0.1}
    one = Watching(NodeConfig(name="one", subscribe_topic_name="a", **config))
    other = Watching(NodeConfig(name="other", subscribe_topic_name="b", **config))
    async with memory.connect() as bus, running(bus, one, other):
        await lose(bus, "a", 2)
        await eventually(one.came, lambda: Gap("a", 2, "lost") in one.events)
        await eventually(one.came, lambda: DeadlineMissed("a", 0.1) in one.events)
        assert all(event.topic == "b" for event in other.events)


async def test_every_node_gets_to_know_that_the_broker_is_away_and_says_so_once(msight_simulation, caplog):
    caplog.set_level(logging.WARNING)
    nodes = [
        Watching(NodeConfig(name="sink", subscribe_topic_name="b")),
        Apply(NodeConfig(name="step", subscribe_topic_name="a", publish_topic_name="b"), echo),
    ]
    async with msight_simulation.connect() as bus, running(bus, *nodes):
        msight_simulation.disconnect(bus)
        await asyncio.sleep(60)
        msight_simulation.reconnect(bus)
        await asyncio.sleep(60)
        kinds = [type(event) for event in nodes[0].events]
        assert kinds.count(Disconnected) == kinds.count(Reconnected) == 1
    for name in ("sink", "step"):
        said = [r.getMessage() for r in caplog.records if r.name == f"msight_bus.nodes.{name}"]
        assert sum("Broker away" in line for line in said) == 1
        assert sum("Broker back" in line for line in said) == 1


async def test_an_error_in_on_event_harms_nothing(memory, caplog):
    class Broken(Watching):
        def on_event(self, event):
            super().on_event(event)
            raise OSError("my own")

    node = Broken(NodeConfig(name="n", subscribe_topic_name="a"))
    async with memory.connect() as bus, running(bus, node):
        await lose(bus, "a", 1)
        await eventually(node.came, lambda: node.events and len(node.items) == 2)
    assert "my own" in caplog.text
    assert node.status == "STOPPED"


async def test_on_event_of_the_program_gets_the_gaps_too(memory):
    events = []
    async with connect(memory.settings(), on_event=events.append) as bus, running(bus, node := sink()):
        await lose(bus, "in", 2)
        await node.until(2)
        await asyncio.sleep(0.01)
    assert Gap("in", 2, "lost") in events


# -- while disconnected


async def test_a_source_waits_for_the_broker_and_loses_nothing(msight_simulation):
    source = Numbers(NodeConfig(name="source", publish_topic_name="a"), count=50)
    node = Collect(NodeConfig(name="sink", subscribe_topic_name="a"))
    async with msight_simulation.connect() as other, running(other, node):
        async with msight_simulation.connect() as bus:
            msight_simulation.disconnect(bus)
            await asyncio.sleep(1)
            task = await start(bus, source)
            await asyncio.sleep(300)
            assert source.left == 1
            assert source.given == 1
            msight_simulation.reconnect(bus)
            await task
            await node.until(50)
    assert source.metrics().dropped == 0


async def test_a_source_drops_and_counts_while_the_broker_is_away(msight_simulation, caplog):
    class Slow(Numbers):
        async def get_data(self):
            await asyncio.sleep(1)
            return await super().get_data()

    source = Slow(NodeConfig(name="source", publish_topic_name="a", while_disconnected="drop"), count=30)
    node = Collect(NodeConfig(name="sink", subscribe_topic_name="a"))
    async with msight_simulation.connect() as other, running(other, node):
        async with msight_simulation.connect() as bus:
            task = await start(bus, source)
            await asyncio.sleep(10.5)
            msight_simulation.disconnect(bus)
            await asyncio.sleep(10)
            msight_simulation.reconnect(bus)
            await task
    dropped = source.metrics().dropped
    assert 9 <= dropped <= 12
    assert len(node.items) + dropped == 30
    assert source.metrics().messages_out == 30 - dropped
    assert "Outputs dropped: 1 on a" in caplog.text


# -- levels


async def test_the_levels_of_the_program_hold_where_nothing_is_said(memory):
    logger = logging.getLogger("msight_bus.nodes.sink")
    logger.setLevel(logging.ERROR)
    try:
        async with memory.connect() as bus, running(bus, sink()):
            assert logger.level == logging.ERROR
        async with memory.connect(MSIGHT_LOGGING_LEVEL="WARNING") as bus, running(bus, sink()):
            assert logger.level == logging.WARNING
    finally:
        logger.setLevel(logging.NOTSET)


# -- the lines themselves


async def test_a_line_names_at_most_three_topics(caplog):
    tally = Tally("Messages missing", logging.getLogger("test"), 60)
    for number in range(5):
        tally.add(f"t{number}", number + 1, "lost")
    tally.add("t0", None, "reconnect")
    await asyncio.sleep(0.01)
    tally.close()
    assert [record.getMessage() for record in caplog.records] == [
        "Messages missing: 15 and 1 times an unknown number on t4 (5), t3 (4), t2 (3) and 2 more (reconnect)"
    ]


async def test_a_gap_of_unknown_size_says_so(caplog):
    tally = Tally("Messages missing", logging.getLogger("test"), 60)
    tally.add("t", None, "reconnect")
    await asyncio.sleep(0.01)
    tally.add("t", None, "reconnect")
    tally.add("t", None, "reconnect")
    tally.close()
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "Messages missing: unknown number on t (reconnect)"
    assert second.startswith("Messages missing: unknown number, 2 times on t in 0 s")


async def test_a_source_that_gives_nothing_for_long_is_told_once(memory, caplog):
    class Idle(Numbers):
        async def get_data(self):
            await asyncio.sleep(0.001)

    node = Idle(
        NodeConfig(
            name="idle", publish_topic_name="out", heartbeat_tolerance=0.02, heartbeat_checking_duration=INTERVAL / 20
        )
    )
    async with memory.connect() as bus, running(bus, node):
        while not lines(caplog, "No output for "):
            await asyncio.sleep(0.01)
        await asyncio.sleep(INTERVAL)
    assert len(lines(caplog, "No output for ")) == 1


@pytest.mark.parametrize(("topics", "told"), [(("in", "other"), 1), (("in", "in"), 0)])
async def test_two_nodes_of_one_name_are_told_unless_they_share_their_input(memory, caplog, topics, told):
    nodes = [sink(name="twin", subscribe_topic_name=topic) for topic in topics]
    async with memory.connect() as bus, running(bus, *nodes):
        pass
    assert len(lines(caplog, "Two nodes of this process are named twin")) == told
