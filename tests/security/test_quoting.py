"""The text of brokers and other programs reaches errors, events, logs and terminals as printable text on one line."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys

import msgspec
import nats as nats_py
import pytest

import msight_bus
from msight_bus import BusError
from msight_bus.events import Disconnected, Refused
from tests.support.brokers import running_broker
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.rig import QUICKLY, seen, until
from tests.support.servers import variables
from tests.support.talking import settings_of

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31mno\x1b[0m\x9b1m \u202e\u2028 \x00\x7f\tend"
"""Escapes, in 7 and 8 bits, a bell, a change of direction, a line separator, NUL, DEL and a tab."""

RAW = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def assert_printable(text):
    found = RAW.search(text)
    assert found is None, f"{found[0]!r} in {text!r}"


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("msight_bus")]


async def refused(peer, kind, **values):
    async with fake(peer) as there:
        with pytest.raises(BusError) as caught:
            async with msight_bus.connect(
                settings_of(variables(kind, there.port, **values), MSIGHT_CONNECT_TIMEOUT="2")
            ):
                pass
    return caught.value


# -- while connecting


@pytest.mark.parametrize("code", ["ERR", "WRONGPASS", "LOADING"])
@pytest.mark.parametrize("verb", ["AUTH", "SELECT"])
async def test_an_error_of_redis_while_connecting(verb, code):
    says = f"-{code} said {EVIL}\r\n".encode()
    peer = Peer("redis", lambda command: says if command.verb == verb else None)
    text = str(await refused(peer, "redis", USERNAME="alice", PASSWORD="secret", DB="3"))
    assert "said" in text
    assert_printable(text)


async def test_an_error_of_nats_while_connecting():
    says = f"-ERR 'said {EVIL}'\r\n".encode()
    peer = Peer("nats", lambda command: says if command.verb == "CONNECT" else None)
    text = str(await refused(peer, "nats"))
    assert "said" in text
    assert_printable(text)


async def test_a_greeting_of_another_protocol():
    for kind in ("redis", "nats"):
        peer = Peer(kind, lambda command: f"{EVIL}\r\n".encode(), greeting=f"220 {EVIL}\r\n".encode())
        assert_printable(str(await refused(peer, kind)))


# -- while connected


async def broken(kind, peer, caplog, make_it_say):
    """A bus at a peer that says something evil; what callers and logs were told."""
    events: list = []
    async with fake(peer) as there:
        settings = settings_of(variables(kind, there.port), **QUICKLY)
        with caplog.at_level(logging.DEBUG, "msight_bus"):
            async with msight_bus.connect(settings, on_event=events.append) as bus:
                told = await make_it_say(bus, events)
    texts = [*told, *logged(caplog), *(event.reason for event in events if isinstance(event, Disconnected | Refused))]
    assert any("said" in text for text in texts), texts
    return texts


async def subscribe(bus, events):
    with pytest.raises(BusError) as caught:
        async with bus.subscribe("a"):
            pass
    return [str(caught.value)]


async def publish(bus, events):
    with pytest.raises(BusError) as caught:
        async with bus.publisher("a") as publisher:
            await publisher.send(b"x")
    return [str(caught.value)]


async def be_cut(bus, events):
    async with bus.subscribe("a"):
        await bus.publish("a", b"x")
        await until(lambda: seen(events, Disconnected))
    return []


@pytest.mark.parametrize(
    ("verb", "act"), [("SUBSCRIBE", subscribe), ("PUBLISH", publish)], ids=["subscribing", "publishing"]
)
async def test_a_refusal_of_redis(verb, act, caplog):
    says = f"-NOPERM said {EVIL}\r\n".encode()
    peer = Peer("redis", lambda command: says if command.verb == verb and b"a" in command.words else None)
    for text in await broken("redis", peer, caplog, act):
        assert_printable(text)


async def test_an_error_of_nats_that_ends_the_connection(caplog):
    says = f"-ERR 'said {EVIL}'\r\n".encode()
    peer = Peer("nats", lambda command: says if command.verb == "HPUB" and command.words[0] == b"a" else None)
    for text in await broken("nats", peer, caplog, be_cut):
        assert_printable(text)


async def test_a_refusal_of_nats_that_names_a_subject(caplog):
    says = f"-ERR 'Permissions Violation for Publish to \"a\" said {EVIL}'\r\n".encode()
    peer = Peer("nats", lambda command: says if command.verb == "HPUB" and command.words[0] == b"a" else None)

    async def act(bus, events):
        async with bus.subscribe("b"):
            try:
                await publish(bus, events)
            finally:
                await until(lambda: seen(events, Refused) or seen(events, Disconnected))
        return []

    for text in await broken("nats", peer, caplog, act):
        assert_printable(text)


# -- on a terminal


@pytest.mark.parametrize(
    ("kind", "verb", "says"),
    [
        ("redis", "SUBSCRIBE", f"-NOPERM said {EVIL}\r\n"),
        ("nats", "CONNECT", f"-ERR 'Authorization said {EVIL}'\r\n"),
    ],
    ids=["redis", "nats"],
)
async def test_the_output_of_a_command(kind, verb, says):
    peer = Peer(kind, lambda command: says.encode() if command.verb == verb else None)
    async with fake(peer) as there:
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "msight_bus", "top", "--seconds", "0.1"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | variables(kind, there.port),
        )
        output = (await command.communicate())[0].decode()
    assert command.returncode == 3
    assert "said" in output
    for line in output.splitlines():
        assert_printable(line)


async def test_an_announcement_with_control_characters_is_ignored():
    forged = {"name": EVIL, "instance": "1", "type": EVIL, "device": EVIL, "status": "RUNNING", "started_at": 0.0}
    payloads = [msgspec.json.encode({**forged, "heartbeat_interval": 1.0}), EVIL.encode(), EVIL.encode("utf-16")]
    environ = dict(running_broker("nats").env)
    client = await nats_py.connect(environ["MSIGHT_NATS_SERVERS"])
    try:
        async with msight_bus.connect(settings_of(environ)) as bus:
            registry = await bus.nodes()
            for payload in payloads:
                await client.publish("_msight.nodes", payload)
            await client.flush()
            await until(lambda: registry.ignored >= len(payloads))
            assert not any(RAW.search(f"{info.name}{info.type}{info.device}") for info in registry)
    finally:
        await client.close()


async def test_bidirectional_formatting_characters_are_escaped():
    """They are not control characters and reverse the text after them on a terminal: ignoring or escaping them passes."""
    made = {"name": "camera", "instance": "1", "status": "RUNNING", "started_at": 0.0, "heartbeat_interval": 10.0}
    payload = msgspec.json.encode({**made, "type": "a\u202eb", "device": "a\u2066b"})
    environ = dict(running_broker("nats").env)
    client = await nats_py.connect(environ["MSIGHT_NATS_SERVERS"])
    try:
        async with msight_bus.connect(settings_of(environ)) as bus:
            registry = await bus.nodes()
            await client.publish("_msight.nodes", payload)
            await client.flush()
            await until(lambda: registry.ignored or len(registry))
            assert not any(RAW.search(f"{info.type}{info.device}") for info in registry)
    finally:
        await client.close()
