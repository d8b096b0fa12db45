"""Server names: each address of a name is tried, and the certificate must match the name."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, contextmanager

import pytest

import msight_bus
from msight_bus import AuthenticationError
from msight_bus.backends.kafka.aiokafka_compat import Connection
from msight_bus.backends.kafka.client import client_options
from msight_bus.events import Reconnected
from tests.support.brokers import running_broker
from tests.support.listeners import proxy
from tests.support.rig import seen, until
from tests.support.servers import CREDENTIALS, LIVE, PREFIX, variables
from tests.support.talking import new_topic, settings_of, talk

NAME = "broker.example"
"""The certificate ``elsewhere`` is for this host."""

both = pytest.mark.parametrize("kind", LIVE)


def run_where(addresses, scenario, within=15.0):
    """Run ``scenario()`` on a loop for which ``NAME`` has these addresses, in this order; uvloop resolves out of reach."""

    class Loop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, host, port, *, family=0, type=0, proto=0, flags=0):  # noqa: A002
            name = host.decode() if isinstance(host, bytes) else host
            if name.rstrip(".") != NAME:
                return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
            found = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [(*found, (address, int(port))) for address in addresses]

    async def limited():
        async with asyncio.timeout(within):
            return await scenario()

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(limited())


@contextmanager
def silent(port, *addresses):
    """Servers that take connections and never answer, as frozen ones do."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_server((address, port))) for address in addresses]


def environment(kind, port, host=NAME, **values):
    given = variables(kind, port, **values)
    return {name: value.replace("127.0.0.1", host) for name, value in given.items()}


def quick(**more):
    return {"MSIGHT_CONNECT_TIMEOUT": "3", **more}


@both
@pytest.mark.parametrize("silent_ones", [1, 3])
def test_other_addresses_are_tried_if_one_hangs(kind, silent_ones):
    port = running_broker(kind).port
    hang = [f"127.0.0.{number}" for number in range(2, 2 + silent_ones)]
    with silent(port, *hang):
        run_where([*hang, "127.0.0.1"], lambda: talk(settings_of(environment(kind, port), **quick())))


@both
def test_an_address_that_refuses_is_skipped(kind):
    port = running_broker(kind).port
    run_where(["127.0.0.2", "127.0.0.3", "127.0.0.1"], lambda: talk(settings_of(environment(kind, port), **quick())))


@both
def test_every_address_is_verified_against_the_name(kind, secured, made):
    port = secured(kind).ports["elsewhere"]
    tls = {**CREDENTIALS[kind], "USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
    with silent(port, "127.0.0.2"):
        run_where(["127.0.0.2", "127.0.0.1"], lambda: talk(settings_of(environment(kind, port, **tls), **quick())))


@both
def test_a_certificate_for_the_address_is_refused_for_the_name(kind, secured, made):
    """The certificate ``server`` is for 127.0.0.1, the address of the name."""
    port = secured(kind).ports["server"]
    tls = {**CREDENTIALS[kind], "USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}

    async def refused():
        with pytest.raises(AuthenticationError, match="(?i)mismatch|not valid for"):
            async with msight_bus.connect(settings_of(environment(kind, port, **tls), **quick())):
                pass

    run_where(["127.0.0.1"], refused)


@both
def test_on_reconnecting_the_name_is_resolved_and_each_address_tried(kind):
    """The address that was connected hangs now; another one accepts."""
    port = running_broker(kind).port

    async def scenario():
        events: list = []
        addresses[:] = ["127.0.0.1"]
        async with proxy(port) as way:
            environ = environment(kind, way.port)
            topic = new_topic()
            settings = settings_of(environ, **quick(MSIGHT_RECONNECT_MAX="0.1", MSIGHT_CONNECT_TIMEOUT="1"))
            async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
                with silent(way.port, "127.0.0.2"):
                    addresses[:] = ["127.0.0.2", "127.0.0.1"]
                    way.cut()
                    await until(lambda: seen(events, Reconnected), within=4)
                    await bus.publish(topic, b"x")
                    assert (await anext(messages)).payload == b"x"

    addresses: list[str] = []
    run_where(addresses, scenario)


@both
def test_a_trailing_dot_of_the_name_is_ignored_in_certificates(kind, secured, made):
    port = secured(kind).ports["elsewhere"]
    tls = {**CREDENTIALS[kind], "USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
    environ = environment(kind, port, host=f"{NAME}.", **tls)
    assert f"{NAME}." in environ[PREFIX[kind] + ("HOST" if kind == "redis" else "SERVERS")]
    run_where(["127.0.0.1"], lambda: talk(settings_of(environ, **quick())))


def test_a_trailing_dot_of_the_name_is_ignored_on_kafka(secured, made):
    """For the configured bootstrap server; Kafka advertises the names of the brokers."""
    port = secured("kafka").ports["elsewhere"]
    tls = {**CREDENTIALS["kafka"], "USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
    options = client_options(settings_of(environment("kafka", port, **tls), MSIGHT_CONNECT_TIMEOUT="10"))
    del options["bootstrap_servers"]

    async def scenario():
        connection = Connection(f"{NAME}.", port, **options)
        await connection.connect()
        await connection.close()

    run_where(["127.0.0.1"], scenario)
