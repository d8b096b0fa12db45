"""Settings of the Redis backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from msight_bus.settings.addresses import HostPort
from msight_bus.settings.kinds import Flag, Host, HostPorts, Name, Port, Secret, SocketPath, choice, whole
from msight_bus.settings.problems import ConfigWarning, Problem
from msight_bus.settings.tls import TlsSection, TlsSettings


class RedisSettings(TlsSection):
    """Where Redis is and how to enter."""

    prefix: ClassVar[str] = "MSIGHT_REDIS_MESSAGE_BROKER_"

    host: Host = Field(default="localhost", description="Where Redis is.")
    port: Port = Field(default=6379, description="Its TCP port.")
    db: Annotated[int, whole(0, 1_000_000, "0")] = Field(
        default=0, description="Its database; pub/sub is the same in all."
    )
    username: Name | None = Field(default=None, description="User of its access control list.")
    password: Secret | None = Field(default=None, description="Password of that user, or of the default one.")
    use_cluster: Flag = Field(default=False, description="Whether it is a Redis Cluster.")
    cluster_nodes: HostPorts = Field(
        default=(), description="Its nodes: when one dies, the next is taken. Host and port if there are none."
    )
    unix_socket_path: SocketPath | None = Field(
        default=None, description="Unix socket; takes precedence over host and port."
    )
    wire: Annotated[Literal["framed", "raw"], choice("framed", "raw", example="raw")] = Field(
        default="framed",
        description="framed: a prefix of each payload carries headers; raw: there is none, for other makes.",
        json_schema_extra={"variable": "MSIGHT_WIRE"},
    )

    @property
    def nodes(self) -> tuple[HostPort, ...]:
        """Where to connect to over TCP: one address, or the nodes of the cluster, of which the first that answers is taken."""
        return (self.use_cluster and self.cluster_nodes) or (HostPort(self.host, self.port),)

    @property
    def tls(self) -> TlsSettings:
        """How to encrypt connections; a Unix socket needs no encryption."""
        return self._tls(enabled=self.use_tls and self.unix_socket_path is None)

    def contradictions(self) -> Iterator[Problem]:
        """What a cluster cannot be combined with, besides those of TLS."""
        yield from super().contradictions()
        if self.use_cluster and self.unix_socket_path is not None:
            names = f"{self._name('use_cluster')} and {self._name('unix_socket_path')}"
            sentence = f"{names} exclude each other; unset one of them."
            yield Problem(("use_cluster", "unix_socket_path"), sentence)
        if self.use_cluster and self.db:
            sentence = f"{self._name('db')} must be 0 with {self._name('use_cluster')}: a cluster has one database."
            yield Problem(("use_cluster", "db"), sentence)

    def notices(self) -> Iterator[Warning]:
        """Settings without effect, besides those of TLS."""
        yield from super().notices()
        if self.cluster_nodes and not self.use_cluster:
            yield ConfigWarning(
                f"{self._name('cluster_nodes')} has no effect without {self._name('use_cluster')}=true."
            )
        if self.use_tls and self.unix_socket_path is not None:
            yield ConfigWarning(f"{self._name('use_tls')} has no effect on {self._name('unix_socket_path')}.")

    def _credentials(self) -> Sequence[str]:
        return ["password"] if self.password is not None else []

    def _hosts(self) -> Sequence[str]:
        return [] if self.unix_socket_path is not None else [node.host for node in self.nodes]
