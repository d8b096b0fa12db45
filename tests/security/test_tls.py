"""TLS on every backend: valid certificates are accepted; all others are refused with one typed error before a secret is sent."""

from __future__ import annotations

import json

import pytest

import msight_bus
from msight_bus import AuthenticationError, ConnectionLostError
from tests.support.canaries import found_in
from tests.support.identities import make_key, make_operator
from tests.support.listeners import fake, proxy
from tests.support.peers import INFO, Peer
from tests.support.servers import CREDENTIALS, EVERY, nats_tls_lines, start, variables
from tests.support.talking import refused, settings_of, talk

# The types of TLS records (RFC 8446, 5.1).
CHANGE_CIPHER_SPEC, HANDSHAKE = 20, 22


@pytest.fixture(params=EVERY)
def kind(request):
    return request.param


def environment(kind, port, made, **more):
    tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
    return variables(kind, port, **CREDENTIALS[kind], **(tls | more))


def assert_nothing_was_told(sent: bytes) -> None:
    """Behind the ClientHello there was room for an alert and for no secret: those are 64 bytes and more."""
    told = 0
    while sent:
        size = 5 + int.from_bytes(sent[3:5])
        if sent[0] not in (CHANGE_CIPHER_SPEC, HANDSHAKE):
            told += size
        sent = sent[size:]
    assert told < 64


async def test_a_connection_without_tls_is_accepted(kind, secured):
    async with secured(kind).at("plain") as way:
        await talk(settings_of(variables(kind, way.port, **CREDENTIALS[kind])))


async def test_a_valid_certificate_is_accepted_and_everything_is_encrypted(kind, secured, made):
    async with secured(kind).at("server") as way:
        await talk(settings_of(environment(kind, way.port, made)))
        assert way.connections >= 1
        assert b"hello" not in way.bytes
        assert not found_in(way.bytes.decode("latin-1"))


async def test_the_systems_authorities_are_trusted_unless_others_are_named(kind, secured, made, watch, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", made.ca)  # OpenSSL's name for the system's authorities
    async with secured(kind).at("server") as way:
        credentials = CREDENTIALS[kind] | {"USE_TLS": "true"}
        await talk(settings_of(variables(kind, way.port, **credentials)))
        settings = settings_of(environment(kind, way.port, made, TLS_CA_CERT_FILE=made.stranger))
        await refused(AuthenticationError, settings, watch, "(?i)certificate")


@pytest.mark.parametrize(
    "wrong",
    [
        ("expired", "ca", "expired"),
        ("server", "stranger", "unable to get local issuer|self.signed"),
        ("elsewhere", "ca", "(?i)mismatch|not valid for"),
    ],
    ids=["expired", "authority", "host"],
)
async def test_a_wrong_certificate_is_refused_once_and_gets_no_credentials(kind, secured, made, watch, wrong):
    flavour, ca, why = wrong
    async with secured(kind).at(flavour) as way:
        settings = settings_of(environment(kind, way.port, made, TLS_CA_CERT_FILE=getattr(made, ca)))
        await refused(AuthenticationError, settings, watch, why)
        assert way.connections == 1
        assert_nothing_was_told(way.bytes)


async def test_a_client_certificate_is_accepted_where_required(kind, secured, made):
    async with secured(kind).at("mutual") as way:
        own = {"TLS_CERT_FILE": made.client.cert, "TLS_KEY_FILE": made.client.key}
        await talk(settings_of(environment(kind, way.port, made, **own)))


@pytest.mark.parametrize("own", ["none", "foreign"])
async def test_a_missing_or_untrusted_client_certificate_is_refused(kind, secured, made, watch, own):
    foreign = {"TLS_CERT_FILE": made.foreign_client.cert, "TLS_KEY_FILE": made.foreign_client.key}
    async with secured(kind).at("mutual") as way:
        settings = settings_of(environment(kind, way.port, made, **(foreign if own == "foreign" else {})))
        await refused(AuthenticationError, settings, watch, "(?i)certificate|unknown ca")
        assert way.connections == 1


async def test_a_connection_that_nats_closes_at_the_end_of_the_handshake_is_a_typed_error(secured, made):
    """With TLS 1.3, the refusal of a client without a certificate follows the handshake; without a proxy, at once."""
    settings = settings_of(environment("nats", secured("nats").ports["mutual"], made))
    for _ in range(5):
        with pytest.raises((AuthenticationError, ConnectionLostError)) as caught:
            async with msight_bus.connect(settings):
                pass
        assert "AttributeError" not in str(caught.value)


async def test_a_server_without_tls_gets_no_credentials_where_tls_is_required(kind, secured, made, watch):
    async with secured(kind).at("plain") as way:
        settings = settings_of(environment(kind, way.port, made), MSIGHT_CONNECT_TIMEOUT="1")
        await refused(
            ConnectionLostError, settings, watch, "disconnected before any credential" if kind == "nats" else ""
        )
        assert way.connections == 1
        assert not found_in(way.bytes.decode("latin-1"))
        assert_nothing_was_told(way.bytes)


@pytest.mark.parametrize("way", ["nkey", "jwt"])
async def test_without_tls_a_nats_server_gets_no_signature_for_its_nonce(made, watch, way):
    key = make_key()
    given = {"NKEY_SEED": key.seed} | ({"USER_JWT": make_operator().user_jwt(key)} if way == "jwt" else {})
    peer = Peer("nats", greeting=b"INFO %b\r\n" % json.dumps(INFO | {"nonce": "abc", "auth_required": True}).encode())
    async with fake(peer) as there:
        environ = variables("nats", there.port, USE_TLS="true", TLS_CA_CERT_FILE=made.ca, **given)
        await refused(ConnectionLostError, settings_of(environ), watch, "disconnected before any credential")
        assert not there.bytes


async def test_a_server_with_tls_where_none_is_configured_is_one_typed_error(kind, secured, watch):
    async with secured(kind).at("server") as way:
        # nats-py encrypts where the server wants it, and then knows no authority for its certificate.
        why = AuthenticationError if kind == "nats" else ConnectionLostError
        settings = settings_of(variables(kind, way.port, **CREDENTIALS[kind]), MSIGHT_CONNECT_TIMEOUT="1")
        await refused(why, settings, watch)
        assert way.connections == 1


async def test_nats_is_encrypted_where_the_server_makes_tls_optional(made):
    lines = ["allow_non_tls: true", *nats_tls_lines(made, "server")]
    with start("nats", config=lines) as broker:
        async with proxy(broker.port) as way:
            tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca}
            await talk(settings_of(variables("nats", way.port, **tls)))
            assert b"hello" not in way.bytes


def test_the_redis_server_of_the_tests_has_tls(secured):
    if not secured("redis").has_tls:
        pytest.skip(
            "the Redis at hand was built without TLS: the tests of TLS ran against it behind a TLS server of this run. "
            "Debian's redis-server has it (apt install redis-server); no Redis or Valkey on PyPI has"
        )
