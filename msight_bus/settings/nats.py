"""Settings of the NATS backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from msight_bus.settings.addresses import NatsServer
from msight_bus.settings.kinds import Flag, Name, NatsServers, ReadableFile, Secret
from msight_bus.settings.problems import Problem
from msight_bus.settings.tls import TlsSection, TlsSettings


class NatsSettings(TlsSection):
    """Where NATS is and how to enter."""

    prefix: ClassVar[str] = "MSIGHT_NATS_"

    servers: NatsServers = Field(
        default=(NatsServer("localhost", 4222),), description="The servers of one NATS cluster."
    )
    username: Name | None = Field(default=None, description="User.")
    password: Secret | None = Field(default=None, description="Password of that user.")
    token: Secret | None = Field(default=None, description="Token, instead of a user.")
    nkey_seed: Secret | None = Field(default=None, description="Seed of an NKey, which signs the server's challenge.")
    user_jwt: Secret | None = Field(default=None, description="JWT of a user, together with the seed of its NKey.")
    user_credentials: ReadableFile | None = Field(default=None, description="File (.creds) with a JWT and a seed.")
    tls_verify: Flag = Field(default=True, description="Verify the server's certificate.")
    tls_first: Flag = Field(
        default=False,
        description="Begin with the TLS handshake, for servers with handshake_first.",
    )

    @property
    def tls(self) -> TlsSettings:
        """How to encrypt connections. One ``tls://`` server turns it on for all: credentials are for any of
        them.
        """
        enabled = self.use_tls or any(server.tls for server in self.servers)
        return self._tls(enabled=enabled, verify=self.tls_verify)

    def contradictions(self) -> Iterator[Problem]:
        """More than one way to authenticate, or half of one, besides those of TLS."""
        yield from super().contradictions()
        for one, other in (("username", "password"), ("password", "username"), ("user_jwt", "nkey_seed")):
            if getattr(self, one) is not None and getattr(self, other) is None:
                yield Problem((one, other), f"{self._name(one)} needs {self._name(other)} as well.")
        if self.tls_first and not self.tls.enabled:
            sentence = f"{self._name('tls_first')}=true means nothing without TLS; unset it, or set {self._name('use_tls')}=true."
            yield Problem(("tls_first", "use_tls"), sentence)
        ways = self._ways()
        if len(ways) > 1:
            names = " and ".join(self._name(way) for way in ways)
            sentence = f"{names} are different ways to authenticate; set one of them and unset the others."
            yield Problem(tuple(ways), sentence)

    def _ways(self) -> list[str]:
        """One field for each way to authenticate that is configured."""
        ways = {
            "servers": any(server.user_info for server in self.servers),
            "username": self.username is not None or self.password is not None,
            "token": self.token is not None,
            "nkey_seed": self.nkey_seed is not None and self.user_jwt is None,
            "user_jwt": self.user_jwt is not None,
            "user_credentials": self.user_credentials is not None,
        }
        return [field for field, used in ways.items() if used]

    def _credentials(self) -> Sequence[str]:
        return self._ways()

    def _hosts(self) -> Sequence[str]:
        return [server.host for server in self.servers]
