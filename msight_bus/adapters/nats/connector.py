"""Open connections to NATS with nats-py and take them over: addresses, credentials, TLS, and what a failure means."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nats.errors
import nkeys  # type: ignore[import-untyped]
from nats.aio.client import RawCredentials

from msight_bus.adapters.base import Stamp
from msight_bus.adapters.link import Link
from msight_bus.adapters.live import Connection as Owner
from msight_bus.adapters.live import LiveLink
from msight_bus.adapters.nats.link import NatsLink
from msight_bus.adapters.nats.takeover import ConnectingClient, NoTlsError, check_nats_py
from msight_bus.adapters.turns import in_turn
from msight_bus.capabilities import Capabilities
from msight_bus.errors import AuthenticationError, BusError, ConfigError, ConnectionLostError
from msight_bus.settings import BusSettings, NatsServer
from msight_bus.settings.discretion import hide_secrets
from msight_bus.settings.tls import find_refused_certificate

DEFAULT_MAX_PAYLOAD = 1024 * 1024

_MAX_CREDENTIALS = 64 * 1024
_CREDENTIALS = re.compile(r"-BEGIN NATS USER JWT-+\s+(\S+)\s+-.*-BEGIN USER NKEY SEED-+\s+(\S+)\s+-", re.DOTALL)


class NatsConnector:
    """Connections to one server, or to any server of a cluster."""

    shares_connection = True
    announces = True

    def __init__(self, settings: BusSettings, stamp: Stamp) -> None:
        check_nats_py()
        self._settings = settings
        self._nats = settings.nats
        self._stamp = stamp
        self._max_payload = DEFAULT_MAX_PAYLOAD

    @property
    def capabilities(self) -> Capabilities:
        """What NATS core does."""
        return Capabilities(
            persistence=False,
            delivery="best-effort",
            routing="broadcast or queue group",
            load_balancing=True,
            replay=False,
            acknowledgement=False,
            native_headers=True,
            tail_loss=False,
            max_message_bytes=min(self._max_payload, self._settings.limits.max_message_bytes),
        )

    def _learn(self, max_payload: int) -> None:
        self._max_payload = max_payload

    async def connect_publisher(self, owner: Owner) -> LiveLink:
        """Open a connection; NATS publishes and subscribes on the same."""
        servers = list(self._nats.servers)
        random.shuffle(servers)
        error: BusError | None = None
        for server, within in in_turn(servers, self._settings.limits.connect_timeout):
            credentials = self._credentials(server)
            try:
                async with asyncio.timeout(within):
                    return await self._connect(owner, server, credentials)
            except BusError:
                raise
            except Exception as failure:  # whatever the client stumbles over when a peer talks nonsense
                hide_secrets(failure, tuple(_secrets(**credentials)))
                error = self._explain(failure)
                if isinstance(error, AuthenticationError):
                    raise error from failure
                error.__cause__ = failure
        raise error or ConnectionLostError("No NATS server is configured.")

    async def connect_subscriber(self, owner: Owner) -> LiveLink:
        """Open a connection of the same kind, for a subscription that may be paused."""
        return await self.connect_publisher(owner)

    async def _connect(self, owner: Owner, server: NatsServer, credentials: dict[str, Any]) -> LiveLink:
        """Connect to ``server``; on any error nothing stays open."""
        client = ConnectingClient()
        try:
            await self._open(client, server, credentials)
            transport, leftover, release = await client.take_over()

            def on_lost(link: Link, reason: BusError) -> None:
                release()
                owner.lost(link, reason)

            link = NatsLink(
                transport,
                owner,
                on_lost,
                self._stamp,
                max_payload=self.capabilities.max_message_bytes,
                on_max_payload=self._learn,
            )
            link.take_over(leftover)
        except BaseException as failure:
            client.abandon(failure)
            raise
        return link

    async def _open(self, client: ConnectingClient, server: NatsServer, options: dict[str, Any]) -> None:
        """Connect ``client``, and see that it is."""

        async def give_up(error: Exception) -> None:
            raise error  # the client would try again

        context = self._nats.tls.context()
        if context is not None:
            client.requires_tls = True
            options = {**options, "tls": context, "tls_hostname": server.host}
        await client.connect(
            servers=[str(server)],
            allow_reconnect=False,  # the supervisor does that, with a new client
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=ceil(self._settings.limits.connect_timeout),
            name=self._settings.edge_device_name,
            error_cb=give_up,
            **options,
        )
        if not client.is_connected:  # the server hung up where its PONG was due; the client does not mind
            raise nats.errors.Error("the server closed the connection during the handshake")
        if type(client.max_payload) is not int or client.max_payload < 1:
            raise nats.errors.Error("the server's max_payload is no size")
        self._learn(client.max_payload)

    def _credentials(self, server: NatsServer) -> dict[str, Any]:
        """What the client authenticates with.

        Raises:
            ConfigError: a key or credentials file is none; nats-py would notice after connecting, or read for ever.
        """
        settings = self._nats
        if server.user_info is not None:  # percent-encoded in a URL, which nats-py would send as it stands
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

    def _explain(self, error: Exception) -> BusError:
        where = ", ".join(str(server) for server in self._nats.servers)
        text = str(error) or type(error).__name__
        lowered = text.lower()
        if "authorization" in lowered or "authentication" in lowered:
            return AuthenticationError(
                f"NATS at {where} refused the credentials ({text}); check MSIGHT_NATS_USERNAME and _PASSWORD, _TOKEN, "
                "_NKEY_SEED, _USER_JWT or _USER_CREDENTIALS, whichever the server expects."
            )
        if find_refused_certificate(error) is not None:
            return AuthenticationError(
                f"TLS with NATS at {where} was refused over a certificate: {text}; check the MSIGHT_NATS_TLS_ variables."
            )
        if isinstance(error, NoTlsError):
            return ConnectionLostError(f"NATS at {where} was left before any credential was sent: {text}.")
        return ConnectionLostError(
            f"NATS at {where} cannot be reached: {text}. Is it running? `msight-bus up nats` starts one; "
            "MSIGHT_NATS_SERVERS says where it is."
        )


def _read_credentials(path: str) -> tuple[str, str]:
    """JWT and seed of a credentials file."""
    try:
        with Path(path).open("rb") as file:
            found = _CREDENTIALS.search(file.read(_MAX_CREDENTIALS).decode("ascii", "replace"))
    except OSError as error:
        raise ConfigError(f"MSIGHT_NATS_USER_CREDENTIALS cannot be read: {error.strerror}.") from error
    if found is None:
        raise ConfigError(
            "MSIGHT_NATS_USER_CREDENTIALS must name a file with a user's JWT and NKey seed, as `nsc generate creds` writes it."
        )
    return found[1], found[2]


def _checked(seed: str, name: str) -> str:
    """The seed without white space around it; a ConfigError if it is none."""
    seed = seed.strip()
    if not _is_seed(seed):
        raise ConfigError(f"MSIGHT_NATS_{name} must hold the seed of an NKey: 58 letters and digits, SU the first two.")
    return seed


def _is_seed(text: str) -> bool:
    try:
        nkeys.from_seed(bytearray(text.encode())).wipe()
    except Exception:  # whatever its base32 and its cryptography raise
        return False
    return True


def _secrets(user: str = "", user_credentials: object = "", **others: str) -> Iterator[str]:
    """What of the credentials nobody else may see."""
    yield from others.values()
    yield from (line for line in str(user_credentials).splitlines() if line and not line.startswith("-"))


def _bundle(jwt: str, seed: str) -> RawCredentials:
    """A credentials file's text, as `nsc` writes it."""
    return RawCredentials(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
