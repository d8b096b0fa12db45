"""Deadlines that do not count time in which the event loop is blocked."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.tasks import Alarm

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001, 0.05])
def test_a_deadline_of_any_length_ends_the_wait(new_loop, seconds):
    async def wait() -> None:
        async with loop_timeout(seconds):
            await asyncio.sleep(60)

    async def main() -> None:
        waiting = asyncio.ensure_future(wait())
        await asyncio.wait((waiting,), timeout=10)
        assert waiting.done()
        with pytest.raises(TimeoutError):
            waiting.result()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@LOOPS
def test_time_in_which_the_loop_is_blocked_does_not_count(new_loop):
    async def main() -> str:
        answer = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.4, answer.set_result, "answered")
        async with loop_timeout(0.3):
            await asyncio.sleep(0)
            time.sleep(0.5)
            return await answer

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == "answered"


@LOOPS
@pytest.mark.parametrize("after", [-1.0, 0.0, 0.0002, 0.01])
def test_an_alarm_says_how_long_is_left_however_close_it_is(new_loop, after):
    async def main() -> None:
        called = asyncio.Event()
        alarm = Alarm(called.set)
        assert alarm.left(5.0) == 5.0
        alarm.set(asyncio.get_running_loop().time() + after)
        assert 0.0 <= alarm.left(5.0) <= max(0.0, after) + 1e-9
        await asyncio.wait_for(called.wait(), 10)
        alarm.set(None)
        assert alarm.left(5.0) == 5.0

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
