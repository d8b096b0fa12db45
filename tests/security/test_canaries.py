"""No secret appears in logs at DEBUG, warnings, or the texts and tracebacks of errors and of their causes.

Every other test of this folder is watched in the same way (conftest.watch). This module has the failures that belong to no
other subject, peers that quote received data, and the proof that the watch finds a secret."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct

import pytest

import msight_bus
from msight_bus import AuthenticationError, BusError, ConnectionLostError, brokers
from msight_bus.settings import BusSettings
from tests.support.canaries import Watch, canary, found_in
from tests.support.identities import credentials_file, make_key, oauth_token
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.servers import EVERY, PASSWORD, PREFIX, USER, start, variables
from tests.support.talking import refused, settings_of

SECRET = canary("canary")
KEY = make_key()

WAYS = {
    "redis": {"redis": {"USERNAME": "alice", "PASSWORD": SECRET}},
    "user": {"nats": {"USERNAME": "alice", "PASSWORD": SECRET}},
    "token": {"nats": {"TOKEN": SECRET}},
    "url": {"nats": {"SERVERS": f"nats://alice:{SECRET}@127.0.0.1"}},
    "nkey": {"nats": {"NKEY_SEED": KEY.seed}},
    "jwt": {"nats": {"USER_JWT": SECRET, "NKEY_SEED": KEY.seed}},
    "plain": {"kafka": {"SASL_MECHANISM": "PLAIN", "SASL_USERNAME": "alice", "SASL_PASSWORD": SECRET}},
    "scram": {"kafka": {"SASL_MECHANISM": "SCRAM-SHA-512", "SASL_USERNAME": "alice", "SASL_PASSWORD": SECRET}},
    "oauth": {"kafka": {"SASL_MECHANISM": "OAUTHBEARER", "SASL_OAUTH_TOKEN": oauth_token(USER)}},
}


def environment(way, port):
    ((kind, given),) = WAYS[way].items()
    if "SERVERS" in given:
        given = {"SERVERS": f"{given['SERVERS']}:{port}"}
    return variables(kind, port, **given)


async def hang_up(reader, writer):
    pass


async def say_nothing(reader, writer):
    await reader.read()


async def repeat(reader, writer):
    """A peer that says what it is told, as an error in its own protocol's way."""
    writer.write(b'INFO {"max_payload":1000000,"auth_required":true,"nonce":"abc"}\r\n')
    while data := await reader.read(65536):
        writer.write(b"-ERR " + data.replace(b"\r\n", b" ") + b"\r\n")


async def babble(reader, writer):
    await reader.read(1)
    writer.write(bytes(range(256)) * 16)


async def fail_to_connect(settings, watch):
    """The type of the one error."""
    with pytest.raises(BusError) as caught:
        async with msight_bus.connect(settings):
            pass
    watch.show(caught.value, settings)
    return type(caught.value)


@pytest.mark.parametrize("peer", [hang_up, say_nothing, babble, repeat])
async def test_a_peer_of_another_protocol_reveals_no_secret(peer, watch):
    asyncio.get_running_loop().set_debug(True)  # it says where tasks and handles come from
    async with fake(peer) as there:
        each = [settings_of(environment(way, there.port), MSIGHT_CONNECT_TIMEOUT="0.5") for way in WAYS]
        kinds = await asyncio.gather(*(fail_to_connect(settings, watch) for settings in each))
    assert set(kinds) == {ConnectionLostError}


async def test_a_closed_port_reveals_no_secret(watch):
    port = brokers.free_port()
    for way in WAYS:
        await refused(ConnectionLostError, settings_of(environment(way, port)), watch)


@pytest.mark.parametrize(
    ("kind", "verb"), [("redis", "AUTH"), ("redis", "CONFIG"), ("nats", "CONNECT"), ("nats", "PING")]
)
async def test_a_peer_that_disconnects_during_the_handshake_reveals_no_secret(kind, verb, watch):
    peer = Peer(
        kind,
        lambda command: b"" if command.verb in (verb, "PING") else None,
        then=(lambda command: command.verb == verb, hang_up),
    )
    async with fake(peer) as there:
        way = "redis" if kind == "redis" else "user"
        assert await fail_to_connect(settings_of(environment(way, there.port)), watch) is ConnectionLostError
    assert peer.told(verb)


async def test_a_password_quoted_by_redis_is_not_revealed(watch):
    # Redis says so itself: "ERR unknown command 'AUTH', with args beginning with: '<password>'".
    with await asyncio.to_thread(start, "redis", config=['rename-command AUTH ""']) as broker:
        settings = settings_of(variables("redis", broker.port, PASSWORD=PASSWORD))
        await refused(ConnectionLostError, settings, watch, "withheld")


@pytest.mark.parametrize("quoted", ["-ERR 'Authorization Violation: {}'\r\n", "-ERR '{}'\r\n", "{}\r\n"])
async def test_credentials_quoted_by_a_nats_server_are_not_revealed(quoted, watch):
    def quote(command):
        return quoted.format(command.words[0].decode()).encode() if command.verb == "CONNECT" else None

    async with fake(Peer("nats", quote)) as there:
        for way in ("user", "token", "url", "jwt"):
            kind = await fail_to_connect(settings_of(environment(way, there.port)), watch)
            assert kind in (ConnectionLostError, AuthenticationError)


class KafkaThatQuotes:
    """A broker that takes any mechanism and refuses the credentials by repeating them."""

    API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36

    async def __call__(self, reader, writer):
        while True:
            message = await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0])
            api, _, number = struct.unpack_from(">hhi", message)
            if api == self.API_VERSIONS:
                ranges = [(self.API_VERSIONS, 0, 0), (self.HANDSHAKE, 0, 1), (self.AUTHENTICATE, 0, 0), (3, 0, 1)]
                body = struct.pack(">hi", 0, len(ranges)) + b"".join(struct.pack(">hhh", *one) for one in ranges)
            elif api == self.HANDSHAKE:
                names = [b"PLAIN", b"OAUTHBEARER"]
                body = struct.pack(">hi", 0, len(names))
                body += b"".join(struct.pack(">h", len(name)) + name for name in names)
            else:
                text = b"I was told " + bytes(byte for byte in message if 32 <= byte < 127)
                body = struct.pack(">hh", 58, len(text)) + text + struct.pack(">i", 0)
            writer.write(struct.pack(">ii", len(body) + 4, number) + body)


@pytest.mark.parametrize("way", ["plain", "oauth"])
async def test_credentials_quoted_by_kafka_are_not_revealed(way, watch):
    async with fake(KafkaThatQuotes()) as there:
        await refused(AuthenticationError, settings_of(environment(way, there.port)), watch, "withheld")


async def test_secrets_from_files_are_not_revealed(tmp_path, watch):
    secrets = [variable for variable in BusSettings.variables() if variable.secret]
    assert {variable.section for variable in secrets} == set(EVERY)
    for variable in secrets:
        path = tmp_path / variable.name
        path.write_text(SECRET)
        rest = {"USERNAME": {"USERNAME": "u"}, "JWT": {"NKEY_SEED": KEY.seed}}
        more = rest["USERNAME"] if variable.name.endswith("_PASSWORD") else {}
        if variable.name.endswith("_USER_JWT"):
            more = rest["JWT"]
        if variable.section == "kafka":
            more = {"SASL_MECHANISM": "OAUTHBEARER"} if "TOKEN" in variable.name else {"SASL_MECHANISM": "PLAIN"}
            more |= {"SASL_USERNAME": "u"} if "PASSWORD" in variable.name else {}
        environ = variables(variable.section, 1, **more) | {f"{variable.name}_FILE": str(path)}
        settings = settings_of(environ)
        section = getattr(settings, variable.section)
        assert getattr(section, variable.field).get_secret_value() == SECRET
        watch.show(settings, section, settings.dump(), vars(section))


async def test_credentials_of_a_file_are_no_part_of_an_error(tmp_path, watch):
    path = tmp_path / "user.creds"
    path.write_text(credentials_file(SECRET, KEY.seed))
    async with fake(repeat) as there:
        settings = settings_of(variables("nats", there.port, USER_CREDENTIALS=str(path)), MSIGHT_CONNECT_TIMEOUT="1")
        assert await fail_to_connect(settings, watch) is ConnectionLostError


# -- the watch itself


def fail_behind(text):
    """An error whose traceback does not show what it came from."""
    error = LookupError("no wonder")
    error.__context__, error.__suppress_context__ = ValueError(text), True
    return error


@pytest.mark.parametrize(
    "sing",
    [
        lambda watch: logging.getLogger("any.library").debug("told %s", SECRET),
        lambda watch: logging.getLogger("any").debug("told %r", {"password": SECRET.encode()}),
        lambda watch: logging.getLogger("any").debug("told %s", base64.b64encode(b"\0u\0" + SECRET.encode()).decode()),
        lambda watch: watch.show(fail_behind(SECRET)),
        lambda watch: watch.show({"a": SECRET[:50]}),
    ],
    ids=["log", "bytes", "base64", "context", "cut"],
)
def test_the_watch_finds_a_revealed_secret(sing, watch):
    root, second = logging.getLogger(), Watch()
    root.removeHandler(watch)
    root.addHandler(second)
    try:
        sing(second)
    finally:
        root.removeHandler(second)
    with pytest.raises(AssertionError, match="secrets are shown"):
        second.check()
    assert not found_in("a song of no consequence")
    assert set(PREFIX) == set(EVERY)
