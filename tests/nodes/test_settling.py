"""When an input is acknowledged, without a broker."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from msight_bus import AuthenticationError, ClosedError, Message
from msight_bus.nodes.settling import Settling


class Log:
    """Keeps what was settled (message.Settlement)."""

    def __init__(self):
        self.settled = []
        self.refused = []

    def settle(self, message):
        self.settled.append(message.sequence)

    async def release(self, message):
        raise AssertionError

    def message(self, sequence, size=1):
        return Message("in", b"x" * size, sequence=sequence, _settlement=self)

    async def on_refused(self, message, error):
        self.refused.append((message.sequence, type(error)))


@asynccontextmanager
async def settling(log, max_messages=100, max_bytes=100):
    made = Settling(max_messages=max_messages, max_bytes=max_bytes, refused=log.on_refused)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait((task,))


def outputs(count):
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_input_is_done_when_all_its_outputs_are():
    log = Log()
    async with settling(log) as pending:
        first, second = outputs(2)
        await pending.add(log.message(1), [first, second])
        second.set_result(None)
        await turns()
        assert log.settled == []
        first.set_result(None)
        await pending.finish()
        assert log.settled == [1]


async def test_a_refused_output_leaves_its_input_open_and_the_next_one_goes_on():
    log = Log()
    async with settling(log) as pending:
        first, second, third = outputs(3)
        for sequence, output in enumerate((first, second, third), 1):
            await pending.add(log.message(sequence), [output])
        first.set_exception(AuthenticationError("no"))
        second.set_result(None)
        third.cancel()
        await pending.finish()
        assert log.settled == [2]
        assert log.refused == [(1, AuthenticationError), (3, ClosedError)]


@pytest.mark.parametrize(("bounds", "size"), [({"max_messages": 2}, 1), ({"max_bytes": 20}, 10)])
async def test_too_many_hold_the_next_one_up(bounds, size):
    log = Log()
    async with settling(log, **bounds) as pending:
        all_outputs = outputs(3)
        for sequence in (1, 2):
            await pending.add(log.message(sequence, size), [all_outputs[sequence - 1]])
        third = asyncio.create_task(pending.add(log.message(3, size), [all_outputs[2]]))
        await turns()
        assert not third.done()
        all_outputs[0].set_result(None)
        await third
        assert len(pending) == 2


async def test_one_that_is_too_large_alone_is_taken():
    log = Log()
    async with settling(log, max_bytes=5) as pending:
        (output,) = outputs(1)
        await pending.add(log.message(1, size=1000), [output])
        assert len(pending) == 1


async def test_cancelling_it_leaves_the_outputs_alone():
    log = Log()
    (output,) = outputs(1)
    async with settling(log) as pending:
        await pending.add(log.message(1), [output])
        await turns()
    assert not output.cancelled()
