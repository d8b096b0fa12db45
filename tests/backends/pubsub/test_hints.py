"""An error of connecting names what was tried and why it failed, and the variables that lead there."""

from __future__ import annotations

import asyncio
import re

import pytest

from msight_bus import ConnectionLostError
from tests.support.brokers import Backend
from tests.support.listeners import fake
from tests.support.servers import variables

PREFIX = "MSIGHT_REDIS_MESSAGE_BROKER_"


async def told(backend, **more):
    with pytest.raises(ConnectionLostError) as caught:
        async with backend.connect(**{"MSIGHT_CONNECT_TIMEOUT": "3", **more}):
            pass
    return str(caught.value)


@pytest.mark.parametrize("there", ["nothing", "a file"])
async def test_a_unix_socket_is_named_by_its_own_variable(tmp_path, there):
    path = tmp_path / "redis.sock"
    if there == "a file":
        path.touch()
    text = await told(Backend("redis", {f"{PREFIX}UNIX_SOCKET_PATH": str(path)}))
    assert str(path) in text
    assert f"{PREFIX}UNIX_SOCKET_PATH" in text
    assert f"{PREFIX}HOST" not in text
    assert "_PORT" not in text


@pytest.mark.parametrize("kind", ["redis", "nats"])
async def test_an_address_is_named_by_its_variable(kind):
    async with fake(hang_up) as nobody:
        port = nobody.port
    text = await told(Backend(kind, variables(kind, port)))
    assert f"127.0.0.1:{port}" in text
    assert (f"{PREFIX}HOST" if kind == "redis" else "MSIGHT_NATS_SERVERS") in text


async def test_a_database_that_redis_does_not_have_is_named_by_its_variable(redis):
    text = await told(redis, MSIGHT_REDIS_MESSAGE_BROKER_DB="99")
    assert "database 99" in text
    assert f"{PREFIX}DB" in text
    assert f"{PREFIX}HOST" not in text


async def hang_up(reader, writer):
    """A peer that takes a connection and ends it."""


async def hang_up_when_spoken_to(reader, writer):
    await reader.read(1)


REASON = r"(?i)closed|reset|hung up|ended|aborted|lost|empty response|broken pipe"


@pytest.mark.parametrize(
    ("kind", "use_tls", "serve"),
    [
        pytest.param("redis", "false", hang_up, id="redis"),
        pytest.param("redis", "true", hang_up, id="redis, TLS"),
        pytest.param("redis", "true", hang_up_when_spoken_to, id="redis, TLS, later"),
        pytest.param("nats", "false", hang_up, id="nats"),
        pytest.param("nats", "true", hang_up, id="nats, TLS"),
    ],
)
async def test_a_peer_that_hangs_up_is_told_with_the_reason(kind, use_tls, serve):
    async with fake(serve) as peer:
        text = await told(Backend(kind, variables(kind, peer.port, USE_TLS=use_tls)))
    assert re.search(REASON, text), text


@pytest.mark.parametrize("kind", ["redis", "nats", "kafka"])
async def test_a_peer_that_says_nothing_is_told_with_the_deadline(kind):
    async def silent(reader, writer):
        await asyncio.Event().wait()

    async with fake(silent) as peer:
        text = await told(Backend(kind, variables(kind, peer.port)), MSIGHT_CONNECT_TIMEOUT="0.3")
    assert "MSIGHT_CONNECT_TIMEOUT" in text
    assert kind != "kafka" or "MSIGHT_KAFKA_SERVERS" in text
