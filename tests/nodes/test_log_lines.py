"""The log lines of a node: its first line, losses and drops, errors, and its last line."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from msight_bus import BusSettings, BytesData, ConnectionLostError, QueuePolicy, connect
from msight_bus.events import DeadlineMissed, Disconnected, Gap, Reconnected, Refused
from msight_bus.nodes import NodeConfig
from msight_bus.tally import Tally
from tests.support.brokers import GROUP
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
        NodeConfig(name="n", subscribe_topic_name=topic, publish_topic_name=f"{topic}.out", group_id=GROUP), echo
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
    assert line == f"Running on {address}: {topic} -> {topic}.out, group {GROUP}"
    assert address == "memory" or re.fullmatch(r"(redis|nats|kafka)://(127\.0\.0\.1|localhost):\d+", address)


async def test_the_first_line_of_a_source_and_of_a_sink_names_the_only_topic(memory, caplog):
    caplog.set_level(logging.INFO)
    source = Numbers(NodeConfig(name="source", publish_topic_name="out"))
    async with memory.connect() as bus:
        async with running(bus, source):
            pass
        async with running(bus, sink(subscribe_topic_name=["a", "b"])):
            pass
    assert lines(caplog, "Running on ") == ["Running on memory: output out", "Running on memory: input a, b"]


async def test_gaps_are_logged_at_the_first_and_then_once_an_interval_with_their_sum(memory, caplog):
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


async def test_drops_are_logged_at_the_first_and_then_once_an_interval(memory, caplog):
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


async def test_events_since_the_last_line_are_logged_at_the_end(memory, caplog):
    go_on = asyncio.Event()

    class Slow(Collect):
        async def on_message(self, data):
            await go_on.wait()
            await super().on_message(data)

    damaged = BytesData(data=b"").serialize()[:-1]
    drops = Slow(NodeConfig(name="drops", subscribe_topic_name="in", queue=QueuePolicy.latest(1)))
    async with memory.connect() as bus, running(bus, drops, sink(heartbeat_update_interval=60)):
        for _ in range(2):
            for _ in range(3):
                await bus.publish("in", damaged)
            await bus.publish("in", b"x")
            await asyncio.sleep(0.01)
        assert [len(lines(caplog, what)) for what in ("Inputs dropped", "Inputs that cannot")] == [1, 1]
        go_on.set()
    for what, total in (("Inputs dropped", drops.metrics().dropped), ("Inputs that cannot", 6)):
        _, last = lines(caplog, what)
        assert f"{total} so far" in last


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


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_inputs_left_at_the_end_are_counted_as_left_and_not_as_dropped(memory, caplog, concurrency):
    caplog.set_level(logging.INFO)

    async def hang(data):
        if data != b"1":
            await asyncio.Event().wait()

    node = Apply(
        NodeConfig(name="hangs", subscribe_topic_name="in", publish_topic_name="out", concurrency=concurrency), hang
    )
    async with memory.connect() as bus:
        task = await start(bus, node)
        for i in range(8):
            await bus.publish("in", b"%d" % i)
        taken = 1 if concurrency == 1 else 4
        while node.metrics().messages_in < taken:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait((task,))
    (line,) = lines(caplog, "Ended with status ")
    assert f"In: {taken}, out: 0, dropped: 0, missing: 0, undecodable: 0, errors: 0, left: 8, " in line
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
    assert "nodes.step: Received Message(topic='a', 3 bytes, sequence=1) of session " in text
    published = re.search(r"nodes.step: Published on b: 3 bytes, sequence 1 of session (\d+)\.", text)
    assert f"nodes.sink: Received Message(topic='b', 3 bytes, sequence=1) of session {published[1]}." in text


async def test_an_error_is_logged_with_its_traceback_once_and_then_counted(memory, caplog):
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


async def test_every_node_logs_an_outage_of_the_broker_once(msight_simulation, caplog):
    caplog.set_level(logging.INFO)
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
        assert sum("Disconnected; " in line for line in said) == 1
        assert sum("Reconnected after" in line for line in said) == 1
        assert sum("Heartbeats are not published" in line for line in said) == 1
        assert sum("Heartbeats are published again" in line for line in said) == 1


async def test_an_error_in_on_event_is_logged_and_the_node_continues(memory, caplog):
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


async def test_a_second_run_gets_each_event_once(msight_simulation):
    node = Watching(NodeConfig(name="sink", subscribe_topic_name="b"))
    async with msight_simulation.connect() as bus:
        for _ in range(2):
            async with running(bus, node):
                pass
        async with running(bus, node):
            msight_simulation.disconnect(bus)
            await asyncio.sleep(1)
            msight_simulation.reconnect(bus)
            await asyncio.sleep(1)
    assert [type(event) for event in node.events if not isinstance(event, Gap)] == [Disconnected, Reconnected]


async def test_a_node_gets_the_refusals_of_its_own_output_topic(memory):
    node = Watching(NodeConfig(name="n", subscribe_topic_name="a"))
    own = Refused("b", "no permission")

    class Step(Apply):
        on_event = Watching.on_event
        events, came = node.events, node.came

    step = Step(NodeConfig(name="s", subscribe_topic_name="a", publish_topic_name="b"), echo)
    async with memory.connect() as bus, running(bus, step):
        for refused in (Refused("c", "no permission"), own):
            bus.core.reporter.report(refused)
        await eventually(node.came, lambda: node.events)
    assert node.events == [own]


# -- while disconnected


async def test_a_source_waits_for_the_broker_and_loses_no_message(msight_simulation):
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
            assert source.status == "RUNNING"  # it is the broker that takes long
            msight_simulation.reconnect(bus)
            await task
            await node.until(50)
    assert source.metrics().dropped == 0


async def test_a_source_drops_and_counts_while_the_broker_is_down(msight_simulation, caplog):
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
    assert "on_event raised" not in caplog.text


async def test_outputs_unconfirmed_at_a_disconnect_are_logged_at_the_end_and_are_no_error(msight_simulation, caplog):
    class Cut(Numbers):
        async def get_data(self):
            await asyncio.sleep(1)
            if self.given == 1:  # this output is written before the connection is known to be lost
                msight_simulation.disconnect(bus)
                asyncio.get_running_loop().call_later(5, msight_simulation.reconnect, bus)
            return await super().get_data()

    source = Cut(NodeConfig(name="source", publish_topic_name="a"), count=3)
    async with msight_simulation.connect() as bus:
        await source.run(bus)
    assert source.status == "STOPPED"
    assert "Outputs may be lost: 1 message on" in caplog.text
    assert "at most these are lost" in caplog.text


async def test_a_node_ends_when_its_bus_stops_reconnecting(msight_simulation):
    settings = BusSettings(environ={"MSIGHT_RECONNECT_LIMIT": "3"}, backend="memory")
    nodes = [
        Numbers(NodeConfig(name="source", publish_topic_name="a")),
        Collect(NodeConfig(name="sink", subscribe_topic_name="a")),
    ]
    async with msight_simulation.connect(settings) as bus, asyncio.timeout(100):
        tasks = [await start(bus, node) for node in nodes]
        msight_simulation.disconnect(bus)
        for task in tasks:
            with pytest.raises(ConnectionLostError):
                await task
    assert [node.status for node in nodes] == ["ERROR", "ERROR"]


async def test_a_dead_letter_that_is_lost_with_the_broker_is_counted(msight_simulation, caplog):
    async def fail(data):
        if data == b"poison":
            msight_simulation.disconnect(bus)
            await asyncio.sleep(1)
            raise ValueError(data)
        return data

    node = Apply(
        NodeConfig(
            name="n",
            subscribe_topic_name="in",
            publish_topic_name="out",
            dead_letter_topic_name="in.dead",
            action_on_error="continue",
        ),
        fail,
    )
    async with msight_simulation.connect() as bus, msight_simulation.connect() as other, running(bus, node):
        await other.publish("in", b"poison")
        await asyncio.sleep(60)
        assert node.metrics().dropped == 1
        msight_simulation.reconnect(bus)
        await asyncio.sleep(1)
        await other.publish("in", b"fine")
        await asyncio.sleep(1)
        assert node.metrics().messages_out == 1
    assert "no dead letter" in caplog.text


# -- levels


async def test_log_levels_of_the_program_are_kept_by_default(memory):
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


async def test_a_gap_of_unknown_size_is_logged_as_such(caplog):
    tally = Tally("Messages missing", logging.getLogger("test"), 60)
    tally.add("t", None, "reconnect")
    await asyncio.sleep(0.01)
    tally.add("t", None, "reconnect")
    tally.add("t", None, "reconnect")
    tally.close()
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "Messages missing: unknown number on t (reconnect)"
    assert second.startswith("Messages missing: unknown number, 2 times on t in 0 s")


async def test_a_later_line_sums_up_its_own_interval(msight_simulation, caplog):
    tally = Tally("Messages missing", logging.getLogger("test"), 10)
    tally.add("t", 5)
    await asyncio.sleep(4)
    tally.add("t", 20)
    tally.add("t", 10)
    await asyncio.sleep(100)
    tally.add("t", 40)
    await asyncio.sleep(0)
    tally.close()
    assert [record.getMessage() for record in caplog.records] == [
        "Messages missing: 5 on t",
        "Messages missing: 30 on t in 10 s (3.0/s), 35 so far",
        "Messages missing: 40 on t in 94 s (0.4/s), 75 so far",
    ]


async def test_a_line_counts_a_thousand_topics_apart(caplog):
    tally = Tally("Messages missing", logging.getLogger("test"), 60)
    for number in range(1500):
        tally.add(f"t{number}", 2)
    await asyncio.sleep(0.01)
    tally.close()
    assert [record.getMessage() for record in caplog.records] == [
        "Messages missing: 3,000 on t0 (2), t1 (2), t2 (2) and 997 more"
    ]


async def test_a_source_without_data_for_long_is_one_warning(memory, caplog):
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
async def test_two_nodes_of_one_name_are_a_warning_unless_they_share_their_input(memory, caplog, topics, told):
    nodes = [sink(name="twin", subscribe_topic_name=topic) for topic in topics]
    async with memory.connect() as bus, running(bus, *nodes):
        pass
    assert len(lines(caplog, "Two nodes of this process are named twin")) == told
