"""`NatsConnector`: connects with nats-py, takes the connection over, and translates failures into typed errors."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nats.errors
from nats.aio.client import RawCredentials

from msight_bus.backends.failover import (
    Failure,
    Meaning,
    connect_first,
    describe,
    is_unreachable,
    look_up,
    raise_warning,
    resolved,
)
from msight_bus.backends.nats.announced_servers import Candidate, read_announced
from msight_bus.backends.nats.connection import NatsConnection
from msight_bus.backends.nats.errors import meaning_of, normalize
from msight_bus.backends.nats.takeover import ConnectingClient, NoTlsError, check_nats_py
from msight_bus.backends.pubsub.connection import Connection, LeavingCallback, LostCallback, RefusedCallback
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ConfigError, ConnectionLostError, quoted
from msight_bus.settings import BusSettings, HostPort, NatsServer
from msight_bus.settings.error_redaction import chain, hide_secrets, quote_texts
from msight_bus.settings.tls import find_refused_certificate

DEFAULT_MAX_PAYLOAD = 1024 * 1024

_MAX_ANNOUNCED_TRIED = 4
"""Maximum number of announced servers, chosen at random, that one attempt to connect tries; more would leave too little time
for each server."""

_MAX_CREDENTIALS = 64 * 1024
_CREDENTIALS = re.compile(r"-BEGIN NATS USER JWT-+\s+(\S+)\s+-.*-BEGIN USER NKEY SEED-+\s+(\S+)\s+-", re.DOTALL)


class NatsConnector:
    """The connector to a NATS server, or to any server of a cluster."""

    shares_connection = True
    announces = True

    def __init__(self, settings: BusSettings) -> None:
        check_nats_py()
        self._settings = settings
        self._nats = settings.nats
        self._max_payload = DEFAULT_MAX_PAYLOAD
        self._announced: tuple[Candidate, ...] = ()
        self._leaving: set[tuple[str, int]] = set()

    @property
    def refusal_patience(self) -> float:
        """Time in seconds for which a refusal on reconnecting is retried; 0 where credentials and certificates cannot change."""
        settings = self._nats
        changes = settings.has_secret_files or settings.user_credentials is not None or settings.encrypted
        return self._settings.limits.refusal_patience if changes else 0.0

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of core NATS; ``max_message_bytes`` is known once a connection was opened."""
        return Capabilities(
            routing="broadcast or queue group",
            load_balancing=True,
            native_headers=True,
            max_message_bytes=min(self._max_payload, self._settings.limits.max_message_bytes),
        )

    def _learn(self, info: Mapping[str, Any], by: Candidate) -> None:
        """Store limits, shutdown and cluster members from an INFO of the server ``by``."""
        if type(limit := info.get("max_payload")) is int:
            self._max_payload = limit
        if info.get("ldm") is True:
            self._leaving.add((by.server.host, by.server.port))
        else:
            self._leaving.discard((by.server.host, by.server.port))
        self._announced = read_announced(info.get("connect_urls"), by) or self._announced

    def _candidates(self) -> list[Candidate]:
        """Return the configured and up to `_MAX_ANNOUNCED_TRIED` announced servers; those in lame duck mode are last."""
        configured = list(self._nats.servers)
        random.shuffle(configured)
        known = {(server.host, server.port) for server in configured}
        announced = [one for one in self._announced if (one.server.host, one.server.port) not in known]
        chosen = random.sample(announced, min(len(announced), _MAX_ANNOUNCED_TRIED))
        candidates = [Candidate(server, server.host) for server in configured] + chosen
        return sorted(candidates, key=lambda one: (one.server.host, one.server.port) in self._leaving)

    @property
    def where(self) -> str:
        """NATS and its addresses, for logs and errors."""
        return f"NATS at {', '.join(map(str, self._nats.servers))}"

    async def connect(
        self, on_lost: LostCallback, *, publishes: bool, on_refused: RefusedCallback, on_leaving: LeavingCallback
    ) -> NatsConnection:
        """Open a connection, which publishes and subscribes (`Connector.connect`)."""
        context = self._nats.ssl_context()
        credentials = {server.user_info: self._credentials(server) for server in self._nats.servers}
        secrets = [secret for options in credentials.values() for secret in _secrets(**options)]

        client = ConnectingClient()

        async def attempt(candidate: Candidate, address: str) -> NatsConnection:
            nonlocal client
            client = ConnectingClient()
            options = credentials[candidate.server.user_info]
            if context is not None:
                client.requires_tls = True
                client.begins_with_tls = self._nats.tls_first
                options = {
                    **options,
                    "tls": context,
                    "tls_hostname": candidate.tls_name.rstrip("."),  # names in certificates have no trailing dot
                    "tls_handshake_first": self._nats.tls_first,
                }
            return await self._connect(client, candidate, address, options, (on_lost, on_refused, on_leaving))

        async def addresses(candidate: Candidate) -> Sequence[str]:
            return await look_up(candidate.server.host, candidate.server.port)

        def explain(candidate: Candidate, address: str | None, error: Exception, share: float) -> Failure:
            hide_secrets(error, secrets)
            quote_texts(error)
            silent = address is not None and client.is_silent
            return self._explain(resolved(candidate.server, address), error, share, silent=silent)

        within = self._settings.limits.connect_timeout
        return await connect_first(self._candidates(), within, addresses=addresses, attempt=attempt, explain=explain)

    async def _connect(
        self,
        client: ConnectingClient,
        candidate: Candidate,
        address: str,
        options: dict[str, Any],
        callbacks: tuple[LostCallback, RefusedCallback, LeavingCallback],
    ) -> NatsConnection:
        """Connect to one address of a server; on an error, close everything."""
        learn = partial(self._learn, by=candidate)
        on_lost, on_refused, on_leaving = callbacks
        try:
            await self._open(client, HostPort(address, candidate.server.port), options)
            learn(client.info)
            transport, leftover, release = await client.take_over()

            def lost(connection: Connection, reason: BusError) -> None:
                release()
                on_lost(connection, reason)

            connection = NatsConnection(
                transport,
                lost,
                on_refused,
                on_leaving,
                max_payload=self.capabilities.max_message_bytes,
                max_received=self._settings.limits.max_message_bytes,
                on_info=learn,
            )
            connection.leaving = client.info.get("ldm") is True
            connection.take_over(leftover)
        except BaseException as failure:
            unread = client.unread_error
            client.abandon(failure)
            if unread and is_unreachable(failure):
                raise nats.errors.Error(unread) from nats.errors.UnexpectedEOF()
            raise
        return connection

    async def _open(self, client: ConnectingClient, where: HostPort, options: dict[str, Any]) -> None:
        """Connect ``client``, and check that the handshake is complete.

        Raises:
            Exception: as nats-py raises.
        """

        async def give_up(error: Exception) -> None:
            raise error  # nats-py would retry

        await client.connect(
            servers=[f"nats://{where}"],
            allow_reconnect=False,  # ReconnectingConnection reconnects, with a new client
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=ceil(self._settings.limits.connect_timeout),
            name=self._settings.edge_device_name,
            error_cb=give_up,
            **options,
        )
        if not client.is_connected:  # nats-py ignores that the server closed the connection before its PONG
            raise nats.errors.Error("the server closed the connection during the handshake")
        if type(client.max_payload) is not int or client.max_payload < 1:
            raise nats.errors.Error(f"max_payload of the server is invalid: {client.max_payload!r:.40}")

    def _credentials(self, server: NatsServer) -> dict[str, Any]:
        """Return the credentials as arguments of nats-py's ``connect``.

        Raises:
            ConfigError: a seed or a credentials file is invalid; nats-py would report that only after connecting.
        """
        settings = self._nats
        if server.user_info is not None:  # percent-encoded in the URL; nats-py would send the encoded text
            user, colon, password = server.user_info.get_secret_value().partition(":")
            return {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
        if settings.username is not None and settings.password is not None:
            return {"user": settings.username, "password": settings.password.get_secret_value()}
        if settings.token is not None:
            return {"token": settings.token.get_secret_value()}
        if settings.user_credentials is not None:
            jwt, seed = _read_credentials(settings.user_credentials)
            return {"user_credentials": _bundle(jwt, _checked(seed, "USER_CREDENTIALS"))}
        if settings.nkey_seed is not None:
            seed = _checked(settings.nkey_seed.get_secret_value(), "NKEY_SEED")
            if settings.user_jwt is None:
                return {"nkeys_seed_str": seed}
            return {"user_credentials": _bundle(settings.user_jwt.get_secret_value().strip(), seed)}
        return {}

    def _explain(self, where: str, error: Exception, share: float, *, silent: bool) -> Failure:
        raise_warning(error, f"NATS at {where}")
        causes = [normalize(str(link)) for link in chain(error)]
        refusal = next((text for text in causes if meaning_of(text) is Meaning.CREDENTIALS), None)
        if refusal is not None:
            return Failure(
                AuthenticationError(
                    f"NATS at {where} refused the credentials ({quoted(refusal)}); check MSIGHT_NATS_USERNAME and _PASSWORD, "
                    "_TOKEN, _NKEY_SEED, _USER_JWT or _USER_CREDENTIALS, whichever the server expects."
                ),
                f"{where} ({quoted(refusal)})",
                answered=True,
            )
        text = describe(error, share)
        brief = f"{where} ({text})"
        if find_refused_certificate(error) is not None:
            refused = f"TLS with NATS at {where} was refused over a certificate: {text}; check the MSIGHT_NATS_TLS_ variables."
            return Failure(AuthenticationError(refused), brief, answered=True)
        if isinstance(error, NoTlsError):
            left = f"NATS at {where}: {text}; disconnected before any credential was sent."
            return Failure(ConnectionLostError(left), brief, answered=True)
        if silent:
            text = f"NATS at {where} accepted the connection and sent no INFO: {text}. {self._hint_of_tls_first()}."
            return Failure(ConnectionLostError(text), brief, answered=False)
        if not is_unreachable(error):
            text = f"NATS at {where} cannot be used now: {text}. Check MSIGHT_NATS_SERVERS."
            return Failure(ConnectionLostError(text), brief, answered=True)
        return Failure(
            ConnectionLostError(
                f"NATS at {where} cannot be reached: {text}. Check MSIGHT_NATS_SERVERS, or start a server with "
                "`msight-bus up nats`."
            ),
            brief,
            answered=False,
        )

    def _hint_of_tls_first(self) -> str:
        if self._nats.tls_first:
            return "MSIGHT_NATS_TLS_FIRST=true is for servers that begin with the TLS handshake (handshake_first)"
        more = "" if self._nats.encrypted else " and MSIGHT_NATS_USE_TLS=true"
        return f"If it begins with the TLS handshake (handshake_first), set MSIGHT_NATS_TLS_FIRST=true{more}"


def _read_credentials(path: str) -> tuple[str, str]:
    """Read JWT and seed from a credentials file.

    Raises:
        ConfigError: the file cannot be read, or does not contain both.
    """
    try:
        with Path(path).open("rb") as file:
            found = _CREDENTIALS.search(file.read(_MAX_CREDENTIALS).decode("ascii", "replace"))
    except OSError as error:
        raise ConfigError(f"MSIGHT_NATS_USER_CREDENTIALS cannot be read: {error.strerror}.") from error
    if found is None:
        raise ConfigError(
            "MSIGHT_NATS_USER_CREDENTIALS must name a file with a user's JWT and NKey seed, as written by `nsc generate creds`."
        )
    return found[1], found[2]


def _checked(seed: str, name: str) -> str:
    """Return the seed without surrounding white space.

    Raises:
        ConfigError: ``seed`` is not the seed of an NKey, or the package that signs with it is not installed.
    """
    seed = seed.strip()
    try:
        import nkeys  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise ConfigError(
            f"MSIGHT_NATS_{name} needs the package nkeys, which is not installed: pip install 'msight-bus[nkeys]'."
        ) from None
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:  # the base32 decoder and the cryptography raise various errors
        raise ConfigError(
            f"MSIGHT_NATS_{name} must contain the seed of an NKey: 58 letters and digits that begin with SU."
        ) from None
    return seed


def _secrets(user: str = "", user_credentials: object = "", **others: str) -> Iterator[str]:
    """Yield the secret parts of the credentials, which must not appear in errors."""
    yield from others.values()
    yield from (line for line in str(user_credentials).splitlines() if line and not line.startswith("-"))


def _bundle(jwt: str, seed: str) -> RawCredentials:
    """Return the text of a credentials file, in the format of `nsc`."""
    return RawCredentials(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
