"""What a reader has to follow: the files and functions of the package that one operation enters, on real brokers.

Pings and announcements of sequences are hours apart, the program is not announced, and the garbage collector is off, so that
nothing else runs meanwhile; whoever publishes to a traced subscription does it in another thread, which is not traced.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

import msight_bus
from msight_bus.events import Reconnected
from tests.support.brokers import make_backend_alone
from tests.support.proxy import FaultProxy, port_of, through
from tests.support.receiving import take
from tests.support.rig import LIVE, seen, until

CEILINGS = {
    # operation: most files and functions on Redis, on NATS; whoever makes a path shorter lowers them
    "subscribe": ((31, 118), (23, 74)),  # lists, patterns and MSIGHT_TOPIC_MAP: 17 functions
    "publish": ((6, 8), (5, 6)),
    "receive": ((6, 10), (7, 11)),
    "reconnect": ((23, 101), (21, 96)),
}
PACKAGE = str(Path(msight_bus.__file__).parent) + "/"
QUIETLY = {"MSIGHT_PING_INTERVAL": "3600", "MSIGHT_ANNOUNCE_INTERVAL": "3600", "MSIGHT_ANNOUNCE": "false"}
WARM_UP = 20
"""Messages after which every cache is filled."""

live = pytest.mark.parametrize("target", LIVE, indirect=True)


@pytest.fixture
def target(request):
    """A broker of the kind that the test names, without buses of other tests: their announcements would be traced."""
    return make_backend_alone(request.param)


class Trace:
    """The package's functions that were entered, each once, as (file, qualified name).

    Comprehensions and generator expressions count as the function that they stand in, as they do for a reader.
    """

    def __init__(self):
        self.entered = set()

    @contextmanager
    def running(self):
        gc.collect()
        gc.disable()
        sys.setprofile(self._enter)
        try:
            yield
        finally:
            sys.setprofile(None)
            gc.enable()

    def _enter(self, frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            name = code.co_qualname
            if not name.endswith((".<listcomp>", ".<setcomp>", ".<dictcomp>", ".<genexpr>")):
                self.entered.add((code.co_filename.removeprefix(PACKAGE), name))

    def stays_below(self, operation, backend):
        files, functions = CEILINGS[operation][LIVE.index(backend)]
        entered = "\n".join(f"  {file} {name}" for file, name in sorted(self.entered))
        count = f"{len({file for file, _ in self.entered})} files and {len(self.entered)} functions"
        assert self.entered, "nothing was traced"
        assert len({file for file, _ in self.entered}) <= files, f"{operation} on {backend}: {count}\n{entered}"
        assert len(self.entered) <= functions, f"{operation} on {backend}: {count}\n{entered}"


@asynccontextmanager
async def publishing_elsewhere(target, topic):
    """A function that has one message published on a topic by a bus in another thread."""
    wanted = threading.Semaphore(0)
    ended = threading.Event()

    async def publish():
        async with target.connect(**QUIETLY) as bus:
            while True:
                await asyncio.to_thread(wanted.acquire)
                if ended.is_set():
                    return
                await bus.publish(topic, b"x" * 128)

    running = asyncio.create_task(asyncio.to_thread(asyncio.run, publish()))
    try:
        yield wanted.release
    finally:
        ended.set()
        wanted.release()
        await running


@live
async def test_the_first_subscription_of_a_bus(target, topic):
    async with target.connect(**QUIETLY) as bus, bus.subscribe(topic):  # imports what is imported late
        pass
    trace = Trace()
    async with target.connect(**QUIETLY) as bus:
        await asyncio.sleep(0)
        with trace.running():
            messages = await bus.subscribe(topic).__aenter__()
        await messages.__aexit__(None, None, None)
    trace.stays_below("subscribe", target.name)


@live
async def test_a_publish_in_steady_state(target, topic):
    trace = Trace()
    async with target.connect(**QUIETLY) as bus, bus.subscribe(topic) as messages:
        for _ in range(WARM_UP):
            await bus.publish(topic, b"x" * 128)
            await take(messages, 1)
        with trace.running():
            await bus.publish(topic, b"x" * 128)
    trace.stays_below("publish", target.name)


@live
async def test_a_received_message_in_steady_state(target, topic):
    trace = Trace()
    async with (
        target.connect(**QUIETLY) as bus,
        bus.subscribe(topic) as messages,
        publishing_elsewhere(target, topic) as publish,
    ):
        for _ in range(WARM_UP):
            publish()
            await take(messages, 1)
        with trace.running():
            publish()
            await anext(messages)
    trace.stays_below("receive", target.name)


@live
async def test_a_reconnect(target, topic):
    trace = Trace()
    events = []
    async with FaultProxy(port_of(target)) as proxy:
        async with through(proxy, target).connect(events=events, **QUIETLY) as bus, bus.subscribe(topic) as messages:
            await proxy.reset()  # imports what is imported late
            await until(lambda: len(seen(events, Reconnected)) == 1)
            with trace.running():
                await proxy.reset()
                await until(lambda: len(seen(events, Reconnected)) == 2)
            await bus.publish(topic, b"x")
            assert await take(messages, 1)
    trace.stays_below("reconnect", target.name)
