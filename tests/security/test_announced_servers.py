"""The TLS rules of the configured servers apply to the servers that a NATS server announces."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import msight_bus
from msight_bus import brokers
from msight_bus.events import Disconnected, Reconnected
from tests.support.canaries import found_in
from tests.support.clusters import known_to
from tests.support.listeners import fake, proxy
from tests.support.peers import Peer
from tests.support.rig import seen, until
from tests.support.servers import CREDENTIALS, PASSWORD, USER, nats_tls_lines, start, variables
from tests.support.talking import new_topic, settings_of
from tests.support.waiting import wait_until

QUICK = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_PING_INTERVAL": "0.2", "MSIGHT_CONNECT_TIMEOUT": "2"}


@contextmanager
def cluster(made, announced):
    """Two secured servers, of which the first tells its clients that the second one is at the port ``announced``."""
    ways = [brokers.free_port(), brokers.free_port()]
    routes = ", ".join(f"nats://127.0.0.1:{way}" for way in ways)
    common = [
        f'authorization {{ user: {USER}, password: "{PASSWORD}" }}',
        *nats_tls_lines(made, "server"),
        f'cluster {{ name: two, routes: [{routes}], listen: "127.0.0.1:%d" ',
    ]
    configs = [
        [*common[:-1], common[-1] % ways[0] + "}"],
        [*common[:-1], common[-1] % ways[1] + "}", f'client_advertise: "127.0.0.1:{announced}"'],
    ]
    with start("nats", config=configs[0]) as first, start("nats", config=configs[1]) as second:
        wait_until(lambda: announced in known_to(first.port))
        yield first, second


def environment(port, made):
    tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
    return variables("nats", port, **CREDENTIALS["nats"], **tls)


async def test_no_credentials_are_sent_to_an_announced_server_without_tls(made):
    plain, events = Peer("nats"), []
    async with fake(plain) as there:
        with cluster(made, there.port) as (seed, _):
            settings = settings_of(environment(seed.port, made), **QUICK)
            async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(new_topic()):
                await asyncio.to_thread(seed.stop)
                await until(lambda: seen(events, Disconnected))
                await until(lambda: there.connections >= 2, within=4)
                assert not plain.told("CONNECT")
                assert not found_in(there.bytes.decode("latin-1"))
                assert not seen(events, Reconnected)


async def test_an_announced_server_with_tls_gets_the_same_credentials(made):
    topic, events = new_topic(), []
    async with proxy(0) as there:
        with cluster(made, there.port) as (seed, second):
            there.target = second.port
            settings = settings_of(environment(seed.port, made), **QUICK)
            async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
                await asyncio.to_thread(seed.stop)
                await until(lambda: seen(events, Reconnected), within=4)
                await bus.publish(topic, b"x")
                assert (await anext(messages)).payload == b"x"
                assert there.connections >= 1
                assert b"CONNECT" not in there.bytes
