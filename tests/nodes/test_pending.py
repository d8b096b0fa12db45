"""When an input is acknowledged whose outputs are on their way, without a broker."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest

from msight_bus import AuthenticationError, Message
from msight_bus.nodes import NodeConfig
from msight_bus.nodes.node_run import NodeRun
from msight_bus.nodes.ordered_window import InputWindow


class Log:
    """Keeps what was settled (message.Settlement)."""

    partition = 0

    def __init__(self):
        self.settled = []

    def settle(self, message):
        self.settled.append(message.sequence)

    async def release(self, message):
        raise AssertionError

    def message(self, sequence, size=1):
        return Message("in", b"x" * size, sequence=sequence, _settlement=self)


@asynccontextmanager
async def processing(memory, **variables):
    """A processor of a node, which is not run: only its acknowledging is looked at."""
    config = NodeConfig(name="n", subscribe_topic_name="in", action_on_error="continue")
    async with memory.connect(**variables) as bus, bus.subscribe("in") as subscription:
        run = NodeRun(config, "Node", bus, logging.getLogger("test"), None)
        yield InputWindow(run, None, subscription, None)


def outputs(count):
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_input_is_done_when_all_its_outputs_are(memory):
    log = Log()
    async with processing(memory) as processor:
        first, second = outputs(2)
        await processor._acknowledge(log.message(1), [first, second])
        second.set_result(None)
        await turns()
        assert log.settled == []
        first.set_result(None)
        await turns()
        assert log.settled == [1]


async def test_inputs_are_acknowledged_from_the_head_on(memory):
    log = Log()
    async with processing(memory) as processor:
        first, second = outputs(2)
        await processor._acknowledge(log.message(1), [first])
        await processor._acknowledge(log.message(2), [second])
        await processor._acknowledge(log.message(3), [])
        second.set_result(None)
        await turns()
        assert log.settled == []
        first.set_result(None)
        await turns()
        assert log.settled == [1, 2, 3]


async def test_outputs_of_a_batch_share_an_acknowledgement_that_may_be_there_already(memory):
    log = Log()
    async with processing(memory) as processor:
        (batch,) = outputs(1)
        await processor._acknowledge(log.message(1), [batch])
        batch.set_result(None)
        await turns()
        await processor._acknowledge(log.message(2), [batch])
        await turns()
        assert log.settled == [1, 2]


async def test_a_refused_output_leaves_its_input_open_and_the_next_one_goes_on(memory):
    log = Log()
    async with processing(memory) as processor, processor._tasks:
        first, second, third = outputs(3)
        for sequence, output in enumerate((first, second, third), 1):
            await processor._acknowledge(log.message(sequence), [output])
        first.set_exception(AuthenticationError("no"))
        second.set_result(None)
        third.cancel()
        await turns()
        assert log.settled == [2]


@pytest.mark.parametrize(("bounds", "size"), [({"MSIGHT_MAX_IN_FLIGHT": "2"}, 1), ({"MSIGHT_QUEUE_BYTES": "20"}, 10)])
async def test_too_many_hold_the_next_one_up(memory, bounds, size):
    log = Log()
    async with processing(memory, **bounds) as processor:
        all_outputs = outputs(3)
        for sequence in (1, 2):
            await processor._acknowledge(log.message(sequence, size), [all_outputs[sequence - 1]])
        third = asyncio.create_task(processor._acknowledge(log.message(3, size), [all_outputs[2]]))
        await turns()
        assert not third.done()
        all_outputs[0].set_result(None)
        await third
        assert log.settled == [1]
