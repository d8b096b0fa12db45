"""A NATS server that begins with the TLS handshake (``handshake_first``): it sends nothing before it."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus import AuthenticationError, ConnectionLostError
from tests.support.listeners import proxy
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
