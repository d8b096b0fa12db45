"""With secrets or certificates from files, a refusal on reconnecting is retried, because a rotation takes time."""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import asynccontextmanager

import pytest

import msight_bus
from msight_bus import AuthenticationError, brokers
from msight_bus.events import Disconnected, Reconnected
from tests.support.canaries import canary
from tests.support.listeners import proxy
from tests.support.rig import seen, until
from tests.support.servers import CREDENTIALS, LIVE, USER, start, variables
from tests.support.talking import new_topic, settings_of

QUICK = {
    "MSIGHT_RECONNECT_MAX": "0.1",
    "MSIGHT_PUBLISH_TIMEOUT": "6",
    "MSIGHT_PING_INTERVAL": "0.2",
    "MSIGHT_DRAIN_TIMEOUT": "1",
}
both = pytest.mark.parametrize("kind", LIVE)
TRIES = 3
"""Refused handshakes after which the other side is put right: the first one alone would be told by any implementation."""


@asynccontextmanager
async def connected(settings):
    """A bus with a subscription that works, its events, and a way to talk."""
    topic, events = new_topic(), []
    async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:

        async def talk():
            await bus.publish(topic, b"x")
            async with asyncio.timeout(10):
                assert (await anext(messages)).payload == b"x"

        await talk()
        yield bus, messages, events, talk


@both
async def test_a_temporarily_wrong_server_certificate_is_retried(kind, secured, made):
    servers = secured(kind)
    async with servers.at("server") as right, servers.at("expired") as wrong, proxy(right.port) as way:
        tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
        settings = settings_of(variables(kind, way.port, **CREDENTIALS[kind], **tls), **QUICK)
        async with connected(settings) as (_, _, events, talk):
            way.target = wrong.port
            right.cut()
            way.cut()
            await until(lambda: wrong.connections >= TRIES, within=4)
            way.target = right.port
            await until(lambda: seen(events, Reconnected))
            await talk()


@both
async def test_a_replaced_certificate_authority_is_read_again(kind, secured, made, tmp_path):
    """The server uses its new certificate before this machine has the new authority."""
    ca = tmp_path / "ca.pem"
    shutil.copy(made.ca, ca)
    servers = secured(kind)
    async with servers.at("server") as right, proxy(right.port) as way:
        settings = settings_of(
            variables(kind, way.port, **CREDENTIALS[kind], USE_TLS="true", TLS_CA_CERT_FILE=str(ca)), **QUICK
        )
        async with connected(settings) as (_, _, events, talk):
            shutil.copy(made.stranger, ca)
            before = right.connections
            way.cut()
            await until(lambda: right.connections >= before + TRIES, within=4)
            shutil.copy(made.ca, ca)
            await until(lambda: seen(events, Reconnected))
            await talk()


def door(kind, password):
    if kind == "redis":
        return [f"requirepass {password}"]
    return [f'authorization {{ user: {USER}, password: "{password}" }}']


@both
async def test_a_replaced_password_file_is_read_again(kind, tmp_path):
    """The server has the new password before this machine."""
    old, new = canary("patience old"), canary("patience new")
    file = tmp_path / "password"
    file.write_text(old)
    port = brokers.free_port()
    user = {"USERNAME": USER} if kind == "nats" else {}
    first = await asyncio.to_thread(start, kind, port=port, config=door(kind, old))
    with first:
        async with proxy(port) as way:
            settings = settings_of(variables(kind, way.port, **user, PASSWORD_FILE=str(file)), **QUICK)
            async with connected(settings) as (_, _, events, talk):
                await asyncio.to_thread(first.stop)
                await until(lambda: seen(events, Disconnected))
                with await asyncio.to_thread(start, kind, port=port, config=door(kind, new)):
                    before = way.connections
                    await until(lambda: way.connections >= before + TRIES, within=4)
                    file.write_text(new)
                    await until(lambda: seen(events, Reconnected))
                    await talk()


@both
async def test_a_lasting_refusal_is_raised_after_the_refusal_patience(kind, secured, made, watch):
    servers = secured(kind)
    async with servers.at("server") as right, servers.at("expired") as wrong, proxy(right.port) as way:
        tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
        environ = variables(kind, way.port, **CREDENTIALS[kind], **tls)
        async with connected(settings_of(environ, **QUICK, MSIGHT_REFUSAL_PATIENCE="1")) as (_, messages, _, _):
            way.target = wrong.port
            right.cut()
            way.cut()
            with pytest.raises(AuthenticationError, match="(?i)expired"):
                async with asyncio.timeout(15):
                    await anext(messages)
            assert wrong.connections >= TRIES


@both
async def test_a_refused_password_from_a_variable_is_raised_at_once(kind):
    """A password in a variable cannot change."""
    old, new = canary("patience old"), canary("patience new")
    port = brokers.free_port()
    user = {"USERNAME": USER} if kind == "nats" else {}
    first = await asyncio.to_thread(start, kind, port=port, config=door(kind, old))
    with first:
        settings = settings_of(variables(kind, port, **user, PASSWORD=old), **QUICK)
        async with connected(settings) as (_, messages, events, _):
            await asyncio.to_thread(first.stop)
            await until(lambda: seen(events, Disconnected))
            with await asyncio.to_thread(start, kind, port=port, config=door(kind, new)):
                with pytest.raises(AuthenticationError):
                    async with asyncio.timeout(15):
                        await anext(messages)


@both
async def test_at_the_start_a_refusal_is_raised_at_once(kind, secured, made):
    async with secured(kind).at("expired") as way:
        tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
        with pytest.raises(AuthenticationError):
            async with msight_bus.connect(settings_of(variables(kind, way.port, **CREDENTIALS[kind], **tls))):
                pass
        assert way.connections == 1


@pytest.mark.parametrize("value", ["60", "0.5", "inf"])
def test_patience_is_a_setting_in_seconds(value):
    assert settings_of({}, MSIGHT_REFUSAL_PATIENCE=value).limits.refusal_patience == float(value)


def blames_the_announcements(records):
    return [record for record in records if "_msight.seq" in record.getMessage() and record.levelno >= logging.WARNING]


@both
async def test_a_refused_certificate_is_not_logged_as_a_missing_permission(kind, secured, made, caplog):
    servers = secured(kind)
    async with servers.at("server") as right, servers.at("expired") as wrong, proxy(right.port) as way:
        tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
        environ = variables(kind, way.port, **CREDENTIALS[kind], **tls)
        async with connected(settings_of(environ, **QUICK, MSIGHT_REFUSAL_PATIENCE="0.5")) as (_, messages, _, _):
            way.target = wrong.port
            right.cut()
            way.cut()
            with pytest.raises(AuthenticationError):
                async with asyncio.timeout(15):
                    await anext(messages)
    assert not blames_the_announcements(caplog.records)
