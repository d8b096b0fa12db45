"""A peer that announces excessive sizes or sends unbounded data is disconnected before the data is buffered."""

from __future__ import annotations

import asyncio
import json

import pytest

import msight_bus
from msight_bus import ConnectionLostError
from msight_bus.backends.kafka import decompressing
from msight_bus.events import Gap
from msight_bus.protocol.stream_decoder import ProtocolError
from tests.support.listeners import fake
from tests.support.peers import INFO, Peer
from tests.support.servers import variables
from tests.support.talking import refused, settings_of

MEGABYTE = 1 << 20
ENOUGH = 8 * MEGABYTE
"""Room for the buffers of both sockets and for what a bus may read before it is sure."""

DEEP = 100_000


MAX_MESSAGE = 64 * MEGABYTE
TOO_MUCH = MAX_MESSAGE + ENOUGH
"""No broker sends so long a message unless it was configured to, and none by default."""


class Flood:
    """Writes ``start`` and then as good as without end, and counts what the other side took."""

    def __init__(self, start: bytes, rest: bytes = b"x" * 65536) -> None:
        self.start = start
        self.rest = rest
        self.taken = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.start)
        if self.rest:
            while self.taken < 2 * TOO_MUCH:
                await writer.drain()
                writer.write(self.rest)
                self.taken += len(self.rest)
        await reader.read()


# -- while connecting

REDIS_GREETINGS = {
    "bulk": Flood(b"$1000000000000\r\n"),
    "line": Flood(b"+"),
    "number": Flood(b":", b"9" * 65536),
    "array": Flood(b"*1000000000\r\n", b":1\r\n" * 16384),
    "nested": Flood(b"*1\r\n" * DEEP, b""),
    "negative": Flood(b"$-9\r\n", b""),
    "no redis": Flood(b"SSH-2.0-OpenSSH_9.2\r\n"),
}

NATS_GREETINGS = {
    "endless": Flood(b'INFO {"'),
    "nested": Flood(b"INFO " + b"[" * 30_000 + b"\r\n", b""),
    "deep": Flood(b'INFO {"a":' + b'{"a":' * 5000 + b"\r\n", b""),
    "digits": Flood(b'INFO {"max_payload":' + b"9" * 20_000 + b"}\r\n", b""),
    "list": Flood(b"INFO [1]\r\n", b""),
    "no nats": Flood(b"SSH-2.0-OpenSSH_9.2\r\n"),
}
GREETINGS = [("redis", name, flood) for name, flood in REDIS_GREETINGS.items()]
GREETINGS += [("nats", name, flood) for name, flood in NATS_GREETINGS.items()]


@pytest.mark.parametrize(("kind", "name", "flood"), GREETINGS, ids=[f"{kind}-{name}" for kind, name, _ in GREETINGS])
async def test_an_unbounded_greeting_is_refused(kind, name, flood, watch):
    async with fake(flood) as way:
        settings = settings_of(variables(kind, way.port), MSIGHT_CONNECT_TIMEOUT="3")
        await refused(ConnectionLostError, settings, watch)
        assert flood.taken < ENOUGH
        assert way.connections == 1


@pytest.mark.parametrize("limit", ["many", -1, 0, None, [1], True, 1.5])
async def test_a_nats_server_with_an_invalid_max_payload_is_refused(limit, watch):
    greeting = b"INFO " + json.dumps(INFO | {"max_payload": limit}).encode() + b"\r\n"
    async with fake(Peer("nats", greeting=greeting)) as way:
        await refused(ConnectionLostError, settings_of(variables("nats", way.port)), watch, "max_payload")


@pytest.mark.parametrize(
    "reply",
    [b"*2\r\n$1\r\nx\r\n:9000000000000\r\n", b"*2\r\n$1\r\nx\r\n$18\r\npubsub 99999 many x\r\n", b":1\r\n", b"$-1\r\n"],
)
async def test_an_invalid_output_buffer_limit_of_redis_is_replaced_by_the_default(reply):
    peer = Peer("redis", lambda command: reply if command.verb == "CONFIG" else None)
    async with fake(peer) as way, msight_bus.connect(settings_of(variables("redis", way.port))) as bus:
        assert bus.capabilities.max_message_bytes <= 32 * MEGABYTE


# -- once subscribed

SUBSCRIBED = {
    "redis": [
        Flood(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1000000000000\r\n"),
        Flood(b"*1\r\n" * DEEP, b""),
        Flood(b"*0\r\n*1\r\n:1\r\n*3\r\n$7\r\nmessage\r\n:1\r\n:2\r\n", b""),
    ],
    "nats": [
        Flood(b"MSG a 1 1000000000000\r\n"),
        Flood(b"MSG a 1 -1\r\n", b""),
        Flood(b"HMSG a 1 99999999 10\r\n", b""),
        Flood(b"MSG "),
        Flood(b'INFO {"max_payload":' + b"[" * DEEP + b"\r\n", b""),
        Flood(b"\r\n\0\0\0\0\r\n", b""),
    ],
}
FLOODS = [(kind, flood) for kind, floods in SUBSCRIBED.items() for flood in floods]


def of_topic_a(command):
    return command.verb in ("SUB", "SUBSCRIBE") and command.words[0] == b"a"


@pytest.mark.parametrize(("kind", "flood"), FLOODS, ids=[f"{kind}-{flood.start[:12]!r}" for kind, flood in FLOODS])
async def test_a_connection_flooded_with_invalid_data_is_closed(kind, flood, watch):
    peer = Peer(kind, then=(of_topic_a, flood))
    async with fake(peer) as way:
        limits = {"MSIGHT_RECONNECT_LIMIT": "1", "MSIGHT_RECONNECT_MAX": "0.05", "MSIGHT_CONNECT_TIMEOUT": "3"}
        limits |= {"MSIGHT_PING_INTERVAL": "0.2", "MSIGHT_PONG_TIMEOUT": "0.3"}  # at the latest, it answers no more
        async with msight_bus.connect(settings_of(variables(kind, way.port), **limits)) as bus:
            async with asyncio.timeout(5):
                with pytest.raises((ConnectionLostError, ProtocolError)) as caught:
                    async with bus.subscribe("a") as messages:
                        await anext(messages)
            watch.show(caught.value)
        assert flood.taken < TOO_MUCH


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_kafka_batch_too_large_decompressed_is_skipped_and_reported(kafka, topic, group, monkeypatch):
    monkeypatch.setattr(decompressing, "MAX_BYTES", 100_000)
    events = []
    async with kafka.connect(events=events, MSIGHT_KAFKA_COMPRESSION="gzip") as bus:
        async with bus.subscribe(topic, group_id=group) as messages:
            for payload in (bytes(900_000), b"after"):
                async with bus.publisher(topic) as publisher:
                    await publisher.send(payload, key="one partition")
            assert (await anext(messages)).payload == b"after"
    assert [(event.missing, event.cause) for event in events if isinstance(event, Gap)] == [(1, "unreadable")]
