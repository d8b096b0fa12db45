"""A node's code blocks the event loop: heartbeats, commits and other tasks run in between."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from msight_bus import NodeConfig, SinkNode
from msight_bus.backends.deadlines import loop_timeout
from msight_bus.loop_share import LoopShare
from tests.support.brokers import GROUP
from tests.support.kafka_admin import administering, committed, make
from tests.support.nodes import DEADLINE, eventually, running

SESSION = 2.0
"""Seconds of a member's session."""

HOLD = 1.3
"""Seconds that a handler holds the loop: more than half a session."""


class Slow(SinkNode):
    """Computes for long, in a coroutine that never waits, or that waits before."""

    def __init__(self, config, waits):
        super().__init__(config)
        self.items = []
        self.came = asyncio.Event()
        self._waits = waits

    async def on_message(self, data):
        if self._waits:
            await asyncio.sleep(0.001)
        time.sleep(HOLD)
        self.items.append(data)
        self.came.set()


async def member_ids(kafka, group):
    async with administering(kafka) as admin:
        (response,) = await admin.describe_consumer_groups([group])
        return {member[0] for member in response.groups[0][5]}


@pytest.mark.faults
@pytest.mark.timeout(100)
@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_blocks_the_loop_keeps_the_membership(kafka, topic, caplog, waits):
    n = 12
    node = Slow(NodeConfig(name=topic.replace(".", "-"), subscribe_topic_name=topic), waits)
    group = node.config.group_where_kept()
    await make(kafka, topic)
    async with kafka.connect() as publishing:
        async with kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT=f"{SESSION}") as bus, running(bus, node):
            before = await member_ids(kafka, group)
            for number in range(n):
                await publishing.publish(topic, b"%d" % number)
            await eventually(node.came, lambda: len(node.items) >= n - 4)
            assert await member_ids(kafka, group) == before
            assert len(before) == 1
    assert node.items == [b"%d" % number for number in range(len(node.items))]
    assert await committed(kafka, topic, group) == len(node.items)
    if not waits:
        lines = [record.getMessage() for record in caplog.records if "off_loop" in record.getMessage()]
        assert lines
        assert "Slow.on_message" in lines[0]


@pytest.mark.parametrize("how", ["messages", "batches"])
async def test_a_consumer_that_blocks_the_loop_keeps_the_membership(kafka, topic, how):
    await make(kafka, topic)
    items = []
    async with kafka.connect() as publishing, kafka.connect(MSIGHT_KAFKA_SESSION_TIMEOUT="1") as bus:
        async with bus.subscribe(topic, group_id=GROUP) as messages:
            before = await member_ids(kafka, GROUP)
            for number in range(6):
                await publishing.publish(topic, b"%d" % number)
            while messages.stats.queued < 6:
                await asyncio.sleep(0.01)
            source = messages if how == "messages" else messages.batches(1)
            async for item in source:
                time.sleep(0.7)
                items.append(item)
                if len(items) == 6:
                    break
            assert await member_ids(kafka, GROUP) == before
            last = items[-1] if how == "messages" else items[-1][0]
            await last.ack()
    assert await committed(kafka, topic, GROUP) == 6


async def test_time_in_which_the_loop_is_blocked_does_not_count_for_a_deadline():
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    async def wait():
        async with loop_timeout(0.2):
            return await answer

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    loop.call_soon(lambda: loop.call_soon(loop.call_soon, answer.set_result, "came"))  # a few turns away
    time.sleep(0.5)
    assert await waiting == "came"


async def test_a_deadline_passes_while_the_loop_runs():
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with loop_timeout(0.05):
            await asyncio.Event().wait()
    assert asyncio.get_running_loop().time() - began > 0.03  # each slice is rounded to the loop's milliseconds
    async with loop_timeout(DEADLINE):
        pass


async def test_a_deadline_swallows_no_cancellation():
    async def wait():
        async with loop_timeout(DEADLINE):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_code_that_blocks_the_loop_is_named_at_most_once_an_interval(caplog):
    share = LoopShare("Detector.process", logging.getLogger("test"), 10)
    for began in (100.0, 105.0, 112.0):
        share.begin(began)
        await share.yield_to_loop(began, began + 1.5)
    share.begin(130.0)
    await asyncio.sleep(0)  # the code waited in between
    await share.yield_to_loop(130.0, 131.5)
    assert caplog.text.count("Detector.process blocked the event loop for 1.5 s") == 2


async def test_after_a_long_turn_other_tasks_run_until_idle():
    async def work():
        for _ in range(20):
            await asyncio.sleep(0)

    share = LoopShare("Detector.process", logging.getLogger("test"), 10)
    other = asyncio.create_task(work())
    share.begin(100.0)
    await share.yield_to_loop(100.0, 100.2)
    assert other.done()
