"""The servers that a NATS server announces, and its announcement of a shutdown (lame duck mode)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from msight_bus.events import Reconnected
from tests.support.brokers import Backend, make_backend, start_broker
from tests.support.clusters import nats_cluster
from tests.support.listeners import fake, proxy
from tests.support.peers import INFO, Peer
from tests.support.receiving import take
from tests.support.rig import QUICKLY, seen, until


def info(**fields):
    return b"INFO " + json.dumps(INFO | fields).encode() + b"\r\n"


def urls(*ports):
    return [f"127.0.0.1:{port}" for port in ports]


def servers(*ports):
    return Backend("nats", {"MSIGHT_NATS_SERVERS": ",".join(f"nats://{url}" for url in urls(*ports))})


# -- announced servers


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_an_announced_server_is_tried_if_the_configured_one_is_down(when):
    events: list = []
    other = Peer("nats")
    async with fake(other) as there, AsyncExitStack() as first:
        told = info(connect_urls=urls(there.port))

        def answer(command):  # behind the handshake, at a later PING
            return told + b"PONG\r\n" if command.verb == "PING" and when == "later" and seed.told("SUB") else None

        seed = Peer("nats", answer, greeting=told if when == "at once" else None)
        here = await first.enter_async_context(fake(seed))
        async with servers(here.port).connect(events=events, **QUICKLY) as bus, bus.subscribe("a"):
            assert there.connections == 0
            await until(lambda: len(seed.told("PING")) > 2)  # the one behind SUB was answered
            await first.aclose()
            await until(lambda: seen(events, Reconnected), within=4)
            assert b"a" in [command.words[0] for command in other.told("SUB")]


async def test_configured_servers_come_before_announced_ones():
    events: list = []
    async with fake(Peer("nats")) as announced:
        peer = Peer("nats", greeting=info(connect_urls=urls(announced.port)))
        async with fake(peer) as here, servers(here.port).connect(events=events, **QUICKLY) as bus, bus.subscribe("a"):
            for number in range(1, 4):
                here.cut()
                await until(lambda number=number: len(seen(events, Reconnected)) == number)
            assert announced.connections == 0


@pytest.mark.parametrize(
    "nonsense", [["", "a", ":1", "127.0.0.1:0", "127.0.0.1:99999", "\x1b[2J:1", 5, None], {"a": 1}]
)
async def test_invalid_announced_servers_are_ignored(nonsense):
    """The last announced server exists."""
    events: list = []
    async with fake(Peer("nats")) as there, AsyncExitStack() as first:
        said = [*nonsense, *urls(there.port)] if isinstance(nonsense, list) else nonsense
        later = info(connect_urls=said) + info(connect_urls=urls(there.port)) + b"PONG\r\n"
        seed = Peer("nats", lambda command: later if command.verb == "PING" and seed.told("SUB") else None)
        here = await first.enter_async_context(fake(seed))
        async with servers(here.port).connect(events=events, **QUICKLY) as bus, bus.subscribe("a"):
            await until(lambda: len(seed.told("PING")) > 2)  # the one behind SUB was answered
            await first.aclose()
            await until(lambda: seen(events, Reconnected), within=4)
            assert there.connections >= 1


@pytest.mark.faults
async def test_the_bus_stays_in_the_cluster_if_the_only_configured_server_is_killed():
    events: list = []
    with nats_cluster() as cluster:
        seed, *others = cluster.nodes
        backend = make_backend("nats", seed)
        async with backend.connect(events=events, **QUICKLY) as bus, bus.subscribe("a") as messages:
            await asyncio.to_thread(seed.kill)
            await until(lambda: seen(events, Reconnected), within=10)
            async with make_backend("nats", others[0]).connect() as there:
                async with asyncio.timeout(20):
                    while not messages.stats.received:  # another server hears of a subscription a moment later
                        await there.publish("a", b"x")
                        await asyncio.sleep(0.01)


# -- lame duck


class Leaving:
    """A server that says that it leaves, once it is told to, and what happens to it then."""

    def __init__(self, name, order):
        self.name = name
        self.order = order
        self.leaves = False
        self.last = b""  # what it delivers behind its announcement
        self.peer = Peer("nats", self._answer)
        self.sids = {}

    def _answer(self, command):
        if command.verb == "SUB":
            self.sids[command.words[0]] = command.words[-1]
            if command.words[0] == b"a":
                self.order.append(f"subscribed at {self.name}")
        if command.verb == "PING" and self.leaves:
            self.leaves = False
            return info(ldm=True) + self.message(b"from the old one") + b"PONG\r\n"
        return None

    def message(self, payload):
        return b"MSG a %b %d\r\n%b\r\n" % (self.sids[b"a"], len(payload), payload)

    async def __call__(self, reader, writer):
        await self.peer(reader, writer)
        self.order.append(f"left {self.name}")


@asynccontextmanager
async def two_servers():
    order: list[str] = []
    one, other = Leaving("one", order), Leaving("other", order)
    async with fake(one) as here, fake(other) as there:
        events: list = []
        async with servers(here.port, there.port).connect(events=events, **QUICKLY) as bus:
            async with bus.subscribe("a") as messages:
                old, new = (one, other) if one.sids else (other, one)
                yield old, new, messages, bus, events


async def test_a_server_in_lame_duck_mode_is_left_once_another_server_has_confirmed():
    async with two_servers() as (old, new, messages, bus, _):
        old.leaves = True
        await until(lambda: f"left {old.name}" in old.order, within=4)
        assert old.order.index(f"subscribed at {new.name}") < old.order.index(f"left {old.name}")
        assert (await take(messages, 1))[0].payload == b"from the old one"
        await bus.publish("a", b"x")
        await until(lambda: any(command.payload == b"x" for command in new.peer.told("HPUB")))


async def test_messages_published_during_a_hand_over_are_confirmed():
    async with two_servers() as (old, new, _messages, bus, _):
        async with bus.publisher("a") as publisher:
            await publisher.send(b"before")
            old.leaves = True
            async with asyncio.timeout(5):
                while not new.sids:
                    await publisher.send(b"moving")
                    await asyncio.sleep(0.01)
            await publisher.send(b"after")
        sent = [command.payload for server in (old, new) for command in server.peer.told("HPUB")]
        assert sent.count(b"before") == sent.count(b"after") == 1


async def test_a_server_in_lame_duck_mode_is_used_to_its_end_without_another_server():
    order: list[str] = []
    only = Leaving("only", order)
    events: list = []
    async with fake(only) as here, servers(here.port).connect(events=events, **QUICKLY) as bus:
        async with bus.subscribe("a") as messages:
            only.leaves = True
            assert (await take(messages, 1))[0].payload == b"from the old one"
            await bus.publish("a", b"x")
            await until(lambda: any(command.payload == b"x" for command in only.peer.told("HPUB")))


@pytest.mark.faults
@pytest.mark.timeout(120)
async def test_a_planned_restart_of_a_server_loses_no_message():
    received: list[int] = []
    sent = 0
    over = False
    lines = ['lame_duck_grace_period: "2s"', 'lame_duck_duration: "30s"']
    with nats_cluster(*lines) as cluster:
        async with AsyncExitStack() as stack:
            ways = [await stack.enter_async_context(proxy(node.port)) for node in cluster.nodes]
            events: list = []
            bus = await stack.enter_async_context(
                servers(*(way.port for way in ways)).connect(events=events, **QUICKLY)
            )
            messages = await stack.enter_async_context(bus.subscribe("a"))
            (at,) = [number for number, way in enumerate(ways) if way.connections]
            leaving = cluster.nodes[at]
            other = make_backend("nats", cluster.nodes[at - 1])
            sender = await stack.enter_async_context(other.connect())

            async def publish():
                nonlocal sent
                while not over:
                    await sender.publish("a", b"%d" % sent)
                    sent += 1
                    await asyncio.sleep(0.001)

            async def receive():
                async for message in messages:
                    received.append(int(message.payload))

            tasks = [asyncio.create_task(publish()), asyncio.create_task(receive())]
            try:
                await until(lambda: received)
                os.kill(leaving.pid, signal.SIGUSR2)
                await until(lambda: not leaving.is_alive, within=60)
                there = len(received)
                await until(lambda: len(received) > there + 200)
                over = True
                await tasks[0]
                await until(lambda: received[-1] == sent - 1)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert messages.stats.missing == 0
            assert sorted(set(received)) == list(range(received[0], sent))


# -- accounts


@pytest.mark.faults
async def test_over_an_account_import_tail_loss_turns_false_with_one_warning(caplog):
    lines = [
        "accounts {",
        '  A { users: [{user: a, password: "a"}], exports: [{stream: "cam.>"}] }',
        '  B { users: [{user: b, password: "b"}], imports: [{stream: {account: A, subject: "cam.>"}}] }',
        "}",
    ]
    quick = {"MSIGHT_ANNOUNCE_INTERVAL": "0.1"}
    with start_broker("nats", lines) as broker:

        def member(name):
            return make_backend("nats", broker).connect(**quick, MSIGHT_NATS_USERNAME=name, MSIGHT_NATS_PASSWORD=name)

        async with member("b") as bus, bus.subscribe("cam.ne") as messages, member("a") as sender:
            assert bus.capabilities.tail_loss
            for _ in range(3):
                await sender.publish("cam.ne", b"x")
            assert len(await take(messages, 3)) == 3
            await until(lambda: not bus.capabilities.tail_loss, within=30)
            assert sender.capabilities.tail_loss  # it is permitted to announce, and knows nothing of the import
            warnings = [record for record in caplog.records if record.levelname == "WARNING"]
            assert len([record for record in warnings if "_msight.seq" in record.getMessage()]) == 1


async def test_within_one_account_tail_loss_stays_true(nats, topic):
    quick = {"MSIGHT_ANNOUNCE_INTERVAL": "0.05"}
    async with nats.connect(**quick) as bus, bus.subscribe(topic) as messages, nats.connect(**quick) as sender:
        client_saw = asyncio.Event()

        async def listen():
            import nats as nats_py

            client = await nats_py.connect(nats.env["MSIGHT_NATS_SERVERS"])
            try:
                announcements = await client.subscribe("_msight.seq")
                await client.flush()
                client_saw.set()
                for _ in range(4):
                    await announcements.next_msg(timeout=20)
            finally:
                await client.close()

        listening = asyncio.create_task(listen())
        await client_saw.wait()
        await sender.publish(topic, b"x")
        await take(messages, 1)
        await listening
        assert bus.capabilities.tail_loss
