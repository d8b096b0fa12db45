"""A NATS server says that it leaves, and something else happens while the bus moves to the next one."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

from tests.support.brokers import Backend
from tests.support.listeners import fake
from tests.support.peers import INFO, Peer, Valve
from tests.support.rig import QUICKLY, until

LEAVING = b"INFO " + json.dumps(INFO | {"ldm": True}).encode() + b"\r\n"
PATIENT = QUICKLY | {"MSIGHT_PONG_TIMEOUT": "2", "MSIGHT_ANNOUNCE_INTERVAL": "60"}


class Server:
    """A server that says that it leaves, as often as it is told to, at the next PING."""

    def __init__(self):
        self.valve = Valve()
        self.holds_at: str | None = None
        """The verb at which it falls silent, until the valve is opened."""
        self.says_it_leaves = 0
        self.always_leaves = False
        self.peer = Peer("nats", self._answer)
        self.sids: dict[bytes, bytes] = {}
        self.connections = 0

    def _answer(self, command):
        if command.verb == "SUB":
            self.sids[command.words[0]] = command.words[-1]
        if command.verb == self.holds_at:
            self.valve.close()
        if command.verb == "PING" and self.says_it_leaves:
            times, self.says_it_leaves = self.says_it_leaves, 0
            return LEAVING * times + b"PONG\r\n"
        return None

    async def __call__(self, reader, writer):
        self.connections += 1
        saying = asyncio.create_task(self._say_always(writer))
        try:
            await self.valve.behind(self.peer)(reader, writer)
        finally:
            saying.cancel()
            self.connections -= 1

    async def _say_always(self, writer):
        while not writer.is_closing():
            if self.always_leaves and self.peer.told("SUB"):
                writer.write(LEAVING)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def two_servers():
    one, other = Server(), Server()
    async with fake(one) as here, fake(other) as there:
        both = f"nats://127.0.0.1:{here.port},nats://127.0.0.1:{there.port}"
        async with Backend("nats", {"MSIGHT_NATS_SERVERS": both}).connect(**PATIENT) as bus:
            async with bus.subscribe("a") as messages:
                at_one = b"a" in one.sids
                yield bus, messages, *((one, other, there) if at_one else (other, one, here))


async def test_a_subscription_that_is_made_while_moving_is_made_at_the_next_server_too():
    async with two_servers() as (bus, _, old, new, _way):
        new.holds_at = "SUB"
        old.says_it_leaves = 1
        await until(lambda: b"a" in new.sids, within=4)
        async with bus.subscribe("b") as messages:
            new.valve.open()
            await until(lambda: not old.connections, within=4)
            await until(lambda: b"b" in new.sids, within=2)
            assert messages.stats.queued == 0


async def test_a_server_that_says_again_and_again_that_it_leaves_is_left_once():
    async with two_servers() as (_bus, _, old, new, way):
        old.says_it_leaves = 20
        await until(lambda: b"a" in new.sids and not old.connections, within=4)
        assert way.connections == 1


async def test_closing_while_moving_closes_the_old_connection():
    async with two_servers() as (bus, _, old, new, _way):
        old.holds_at = "UNSUB"
        old.says_it_leaves = 1
        await until(lambda: old.peer.told("UNSUB"), within=4)
        await bus.close()
        await until(lambda: not old.connections and not new.connections, within=2)


async def test_servers_that_all_leave_are_not_tried_without_pause():
    async with two_servers() as (_bus, _, old, new, way):
        old.always_leaves = new.always_leaves = True
        old.says_it_leaves = 1
        await until(lambda: way.connections, within=4)
        await asyncio.sleep(1)
        assert way.connections <= 10
