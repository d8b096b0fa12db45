"""A NATS server that begins with the TLS handshake (``handshake_first``): it sends nothing before it."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest

import msight_bus
from msight_bus import AuthenticationError, ConnectionLostError
from tests.support.listeners import proxy
from tests.support.peers import INFO
from tests.support.servers import CREDENTIALS, PASSWORD, USER, nats_tls_lines, start, variables
from tests.support.talking import refused, settings_of, talk

pytestmark = pytest.mark.filterwarnings("default")  # while the variable is unknown, it may look misspelt


@pytest.fixture
def server(made):
    lines = nats_tls_lines(made, "server")
    door = f'authorization {{ user: {USER}, password: "{PASSWORD}" }}'
    return [door, *lines[:-1], "handshake_first: true", "}"]


def settings(made, port, **more):
    values = {**CREDENTIALS["nats"], "USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca} | more
    return settings_of(variables("nats", port, **values), MSIGHT_CONNECT_TIMEOUT="2.5")


async def test_it_is_reached_with_the_variable(made, server):
    with await asyncio.to_thread(start, "nats", config=server) as broker:
        await talk(settings(made, broker.port, TLS_FIRST="true"))


async def test_its_certificate_and_the_credentials_are_checked(made, server, watch):
    with await asyncio.to_thread(start, "nats", config=server) as broker:
        chosen = settings(made, broker.port, TLS_FIRST="true", TLS_CA_CERT_FILE=made.stranger)
        await refused(AuthenticationError, chosen, watch, "certificate")
        await refused(AuthenticationError, settings(made, broker.port, TLS_FIRST="true", PASSWORD="wrong"), watch)


async def test_without_the_variable_the_error_names_it(made, server, watch):
    with await asyncio.to_thread(start, "nats", config=server) as broker:
        chosen = settings(made, broker.port)
        await refused(ConnectionLostError, chosen, watch, "MSIGHT_NATS_TLS_FIRST")


async def test_a_server_without_tls_is_told_nothing_in_the_clear(made, watch):
    """The variable asks for a handshake, whatever the server says first."""
    door = f'authorization {{ user: {USER}, password: "{PASSWORD}" }}'
    with await asyncio.to_thread(start, "nats", config=[door]) as broker:
        async with proxy(broker.port) as way:
            await refused(ConnectionLostError, settings(made, way.port, TLS_FIRST="true"), watch)
            assert way.bytes[:1] == b"\x16"  # a handshake record of TLS


@pytest.mark.parametrize("first", [False, True], ids=["upgraded", "first"])
async def test_a_server_that_hangs_up_behind_the_handshake_leaves_no_stray_line(made, caplog, first):
    """asyncio would warn about a protocol that does not know that it is encrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server.cert, made.server.key)
    info = b"INFO " + json.dumps({**INFO, "tls_required": True}).encode() + b"\r\n"

    async def hang_up(reader, writer):
        if not first:
            writer.write(info)
        await writer.start_tls(context)
        if first:
            writer.write(info)
        await reader.readuntil(b"CONNECT")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        chosen = settings(made, server.sockets[0].getsockname()[1], TLS_FIRST="true" if first else "false")
        with pytest.raises(ConnectionLostError):
            async with msight_bus.connect(chosen):
                pass
    assert [record.getMessage() for record in caplog.records if record.name != "msight_bus"] == []
