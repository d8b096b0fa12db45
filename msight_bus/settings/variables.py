"""The sections of the settings: all variables except those of `BusSettings` itself, and their contradictions."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from msight_bus.errors import ConfigError
from msight_bus.settings.addresses import HostPort, NatsServer, is_loopback
from msight_bus.settings.secret import Secret
from msight_bus.settings.section import ConfigWarning, InsecureWarning, Problem, Section, variable
from msight_bus.settings.tls import make_context
from msight_bus.settings.value_types import (
    BYTES,
    COUNT,
    COUNT_OR_ZERO,
    CREDS_FILE,
    FLAG,
    HOST,
    HOST_PORTS,
    LINGER,
    NAME,
    NATS_SERVERS,
    PATIENCE,
    PEM_FILE,
    PORT,
    SECONDS,
    SECRET,
    SOCKET_PATH,
    choice,
    whole,
)

Wire = Literal["framed", "raw"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
Profile = Literal["latency", "throughput"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
Unkeyed = Literal["ordered", "spread"]
Isolation = Literal["read_committed", "read_uncommitted"]

_KIB, _MIB = 1024, 1024 * 1024


@dataclass(frozen=True, init=False)
class Limits(Section):
    """Deadlines in seconds, and limits, which are checked before memory is allocated or a message is sent."""

    prefix: ClassVar[str] = "MSIGHT_"
    section: ClassVar[str] = "limits"

    connect_timeout: float = variable(SECONDS, 10.0, "Deadline of one attempt to connect.")
    publish_timeout: float = variable(SECONDS, 10.0, "Deadline of a publish; after it the outcome is unknown.")
    block_timeout: float = variable(
        SECONDS, 2.0, "Longest pause of reading from Redis or NATS while a queue with the policy block is full."
    )
    drain_timeout: float = variable(SECONDS, 10.0, "Deadline of drain().")
    ping_interval: float = variable(SECONDS, 5.0, "Time without received data after which a PING is sent.")
    pong_timeout: float = variable(SECONDS, 5.0, "Deadline of the answer to a PING; after it the connection is closed.")
    reconnect_limit: int | None = variable(COUNT, None, "Attempts to reconnect before the bus fails; unset: no limit.")
    reconnect_min: float = variable(SECONDS, 0.05, "Pause before the first attempt to reconnect.")
    reconnect_max: float = variable(SECONDS, 1.0, "Longest pause between attempts to reconnect.")
    refusal_patience: float = variable(
        PATIENCE, 60.0, "How long a refusal on reconnecting is retried if secrets or certificates can be replaced."
    )
    announce_interval: float = variable(
        SECONDS, 1.0, "Interval at which the last sequence numbers of idle topics, not the program, are announced."
    )
    publisher_topics: int = variable(
        COUNT, 100_000, "Maximum number of topics whose sequence counters are kept; the least recently used is evicted."
    )
    stats_topics: int = variable(
        COUNT,
        10_000,
        "Maximum number of topics of a subscription whose counters are kept; the least recently used is evicted.",
    )
    max_message_bytes: int = variable(BYTES, 64 * _MIB, "Maximum size of a message; the broker can have a lower limit.")
    max_decoded_bytes: int = variable(
        BYTES, 64 * _MIB, "Maximum size of a payload that is decoded, and of the memory of its value."
    )
    max_nesting: int = variable(whole(1, 200, "32"), 32, "Maximum depth of maps and arrays in a payload.")
    max_header_count: int = variable(COUNT_OR_ZERO, 64, "Maximum number of headers of a message.")
    max_header_bytes: int = variable(BYTES, 16 * _KIB, "Maximum size of all headers of a message.")
    max_in_flight: int = variable(COUNT, 10_000, "Maximum number of messages of a publisher() in flight.")
    queue_messages: int = variable(COUNT, 10_000, "Default bound of a subscription's queue, in messages.")
    queue_bytes: int = variable(BYTES, 32 * _MIB, "Default bound of a subscription's queue, in bytes.")

    def contradictions(self) -> Iterator[Problem]:
        """Yield the problem of a minimum pause above the maximum."""
        if self.reconnect_min > self.reconnect_max:
            values = f"they are {self.reconnect_min:g} and {self.reconnect_max:g}"
            sentence = f"{self._name('reconnect_min')} must be at most {self._name('reconnect_max')}; {values}."
            yield Problem(("reconnect_min", "reconnect_max"), sentence)


@dataclass(frozen=True, init=False)
class TlsSection(Section, ABC):
    """Settings of a backend that supports TLS."""

    use_tls: bool = variable(FLAG, False, "Encrypt connections.")
    tls_cert_file: str | None = variable(PEM_FILE, None, "Certificate of the client (PEM).")
    tls_key_file: str | None = variable(PEM_FILE, None, "Private key of that certificate (PEM).")
    tls_ca_cert_file: str | None = variable(
        PEM_FILE, None, "Trusted certificate authorities (PEM); unset: those of the system."
    )

    @property
    def encrypted(self) -> bool:
        """Whether connections are encrypted."""
        return self.use_tls

    @abstractmethod
    def _credentials(self) -> Sequence[str]:
        """Return the fields that are set and contain credentials."""

    @abstractmethod
    def _hosts(self) -> Sequence[str]:
        """Return the hosts to which the bus connects over a network."""

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return a new TLS context, reading the files again, or None without TLS.

        Raises:
            ConfigError: a file has no certificate or key, or the key does not match the certificate.
        """
        if not self.encrypted:
            return None
        unverified, files = self._unverified(), (self.tls_ca_cert_file, self.tls_cert_file, self.tls_key_file)
        verify, check_hostname = "tls_verify" not in unverified, "tls_check_hostname" not in unverified
        return make_context(self.prefix, *files, verify=verify, check_hostname=check_hostname)

    def _unverified(self) -> list[str]:
        return [field for field in ("tls_verify", "tls_check_hostname") if not getattr(self, field, True)]

    def _requires(self, one: str, other: str) -> Iterator[Problem]:
        if getattr(self, one) is not None and getattr(self, other) is None:
            yield Problem((one, other), f"{self._name(one)} requires {self._name(other)}; set both.")

    def _needs_tls(self, field: str, value: str) -> Problem:
        remedy = f"unset it, or set {self._name('use_tls')}=true"
        return Problem((field, "use_tls"), f"{self._name(field)}={value} has no effect without TLS; {remedy}.")

    def contradictions(self) -> Iterator[Problem]:
        """Yield problems: a certificate without its key, unusable files, verification disabled without TLS."""
        unpaired = [*self._requires("tls_cert_file", "tls_key_file"), *self._requires("tls_key_file", "tls_cert_file")]
        yield from unpaired
        failures: Sequence[str] = ()
        if not unpaired:
            try:
                self.ssl_context()
            except ConfigError as error:
                failures = error.problems
        yield from (Problem(("tls_ca_cert_file",), failure) for failure in failures)
        if not self.encrypted:
            yield from (self._needs_tls(field, "false") for field in self._unverified())

    def notices(self) -> Iterator[Warning]:
        """Yield warnings: files without effect, disabled verification, unencrypted credentials."""
        if self.encrypted:
            for field in self._unverified():
                yield InsecureWarning(
                    f"{self._name(field)}=false: the certificate is not fully verified, so other hosts can impersonate it."
                )
            return
        for field in ("tls_cert_file", "tls_key_file", "tls_ca_cert_file"):
            if getattr(self, field) is not None:
                yield ConfigWarning(f"{self._name(field)} has no effect without {self._name('use_tls')}=true.")
        exposed = [host for host in self._hosts() if not is_loopback(host)]
        credentials = ", ".join(self._name(field) for field in self._credentials())
        if exposed and credentials:
            sentence = f"{credentials} would be sent to {exposed[0]} unencrypted; set {self._name('use_tls')}=true."
            yield InsecureWarning(sentence)


@dataclass(frozen=True, init=False)
class RedisSettings(TlsSection):
    """Redis: address, authentication and wire format."""

    prefix: ClassVar[str] = "MSIGHT_REDIS_MESSAGE_BROKER_"
    section: ClassVar[str] = "redis"

    host: str = variable(HOST, "localhost", "Host of the Redis server.")
    port: int = variable(PORT, 6379, "TCP port of the Redis server.")
    db: int = variable(
        whole(0, 1_000_000, "0"), 0, "Number of the database; pub/sub channels are shared by all databases."
    )
    username: str | None = variable(NAME, None, "User of the access control list.")
    password: Secret | None = variable(SECRET, None, "Password of the user, or of the default user.")
    use_cluster: bool = variable(FLAG, False, "Whether the servers are a Redis Cluster.")
    cluster_nodes: tuple[HostPort, ...] = variable(
        HOST_PORTS, (), "Nodes of the cluster to connect to; unset: host and port."
    )
    unix_socket_path: str | None = variable(SOCKET_PATH, None, "Unix socket; takes precedence over host and port.")
    wire: Wire = variable(
        choice(Wire, "raw"),
        "framed",
        "framed: each payload has a prefix with sequence, time, key and headers; raw: no prefix.",
        name="MSIGHT_WIRE",
    )

    @property
    def nodes(self) -> tuple[HostPort, ...]:
        """Addresses over TCP: one address, or the nodes of the cluster, of which the first that accepts a connection is used."""
        return (self.use_cluster and self.cluster_nodes) or (HostPort(self.host, self.port),)

    @property
    def encrypted(self) -> bool:
        """Whether connections are encrypted; a Unix socket needs no encryption."""
        return self.use_tls and self.unix_socket_path is None

    def contradictions(self) -> Iterator[Problem]:
        """Yield problems of TLS, and of a cluster with settings that it excludes."""
        yield from super().contradictions()
        if self.use_cluster and self.unix_socket_path is not None:
            names = f"{self._name('use_cluster')} and {self._name('unix_socket_path')}"
            yield Problem(("use_cluster", "unix_socket_path"), f"{names} exclude each other; unset one.")
        if self.use_cluster and self.db:
            sentence = f"{self._name('db')} must be 0 with {self._name('use_cluster')}: a cluster has one database."
            yield Problem(("use_cluster", "db"), sentence)

    def notices(self) -> Iterator[Warning]:
        """Yield warnings of TLS, and of settings without effect."""
        yield from super().notices()
        if self.cluster_nodes and not self.use_cluster:
            needed = f"{self._name('use_cluster')}=true"
            yield ConfigWarning(f"{self._name('cluster_nodes')} has no effect without {needed}.")
        if self.use_tls and self.unix_socket_path is not None:
            yield ConfigWarning(f"{self._name('use_tls')} has no effect on {self._name('unix_socket_path')}.")

    def _credentials(self) -> Sequence[str]:
        return ["password"] if self.password is not None else []

    def _hosts(self) -> Sequence[str]:
        return [] if self.unix_socket_path is not None else [node.host for node in self.nodes]


@dataclass(frozen=True, init=False)
class NatsSettings(TlsSection):
    """NATS: servers and authentication."""

    prefix: ClassVar[str] = "MSIGHT_NATS_"
    section: ClassVar[str] = "nats"

    servers: tuple[NatsServer, ...] = variable(
        NATS_SERVERS, (NatsServer("localhost", 4222),), "Servers of one cluster."
    )
    username: str | None = variable(NAME, None, "User name.")
    password: Secret | None = variable(SECRET, None, "Password of that user.")
    token: Secret | None = variable(SECRET, None, "Token, instead of a user name and password.")
    nkey_seed: Secret | None = variable(
        SECRET, None, "Seed of an NKey, with which the client signs the server's nonce."
    )
    user_jwt: Secret | None = variable(SECRET, None, "JWT of a user; requires the seed of its NKey.")
    user_credentials: str | None = variable(CREDS_FILE, None, "File (.creds) with a JWT and the seed of its NKey.")
    tls_verify: bool = variable(FLAG, True, "Verify the server's certificate.")
    tls_first: bool = variable(FLAG, False, "Start the TLS handshake before INFO, for servers with handshake_first.")

    @property
    def encrypted(self) -> bool:
        """Whether connections are encrypted. One ``tls://`` server enables TLS for all: all get the same credentials."""
        return self.use_tls or any(server.tls for server in self.servers)

    def contradictions(self) -> Iterator[Problem]:
        """Yield problems of TLS, and of incomplete or several authentication methods."""
        yield from super().contradictions()
        for one, other in (("username", "password"), ("password", "username"), ("user_jwt", "nkey_seed")):
            yield from self._requires(one, other)
        if self.tls_first and not self.encrypted:
            yield self._needs_tls("tls_first", "true")
        ways = self._credentials()
        if len(ways) > 1:
            names = " and ".join(self._name(way) for way in ways)
            sentence = f"{names} are different authentication methods; set one and unset the others."
            yield Problem(tuple(ways), sentence)

    def _credentials(self) -> Sequence[str]:
        """Return one field for each configured authentication method."""
        ways = {
            "servers": any(server.user_info for server in self.servers),
            "username": self.username is not None or self.password is not None,
            "token": self.token is not None,
            "nkey_seed": self.nkey_seed is not None and self.user_jwt is None,
            "user_jwt": self.user_jwt is not None,
            "user_credentials": self.user_credentials is not None,
        }
        return [field for field, used in ways.items() if used]

    def _hosts(self) -> Sequence[str]:
        return [server.host for server in self.servers]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How records are batched.

    Attributes:
        linger_ms: milliseconds for which a record waits for others; 0: only while another batch is in flight.
        batch_bytes: maximum size of a partition's batch, in bytes.
        fetch_bytes: maximum size of a partition's fetch, in bytes; a larger record is fetched alone.
    """

    linger_ms: int
    batch_bytes: int
    fetch_bytes: int


# At 10 000 messages of 128 B a second, lingering for 5 ms took the produce requests from 669 to 185 a second and the
# publisher's CPU from 25 to 16 us a message; a stream without pauses fills its batches in either profile, equally fast.
_PROFILES: Mapping[Profile, Tuning] = {
    "latency": Tuning(linger_ms=0, batch_bytes=256 * _KIB, fetch_bytes=2 * _MIB),
    "throughput": Tuning(linger_ms=5, batch_bytes=_MIB, fetch_bytes=4 * _MIB),
}


@dataclass(frozen=True, init=False)
class KafkaSettings(TlsSection):
    """Kafka: brokers, authentication, topics, batching and consuming."""

    prefix: ClassVar[str] = "MSIGHT_KAFKA_"
    section: ClassVar[str] = "kafka"

    servers: tuple[HostPort, ...] = variable(HOST_PORTS, (HostPort("localhost", 9092),), "Bootstrap servers.")
    sasl_mechanism: Mechanism | None = variable(
        choice(Mechanism, "SCRAM-SHA-512"), None, "SASL mechanism; unset: no authentication."
    )
    sasl_username: str | None = variable(NAME, None, "User, for PLAIN and SCRAM.")
    sasl_password: Secret | None = variable(SECRET, None, "Password of that user.")
    sasl_oauth_token: Secret | None = variable(SECRET, None, "Token, for OAUTHBEARER.")
    tls_verify: bool = variable(FLAG, True, "Verify the broker's certificate.")
    tls_check_hostname: bool = variable(FLAG, True, "Verify that the certificate is valid for the broker's host name.")
    partitions: int = variable(whole(1, 10_000, "4"), 4, "Partitions of a topic that the bus creates.")
    replication: int | None = variable(
        whole(1, 100, "3"), None, "Replicas of a topic that the bus creates; unset: the broker's default."
    )
    create_topics: bool = variable(FLAG, True, "Create topics that do not exist.")
    profile: Profile = variable(
        choice(Profile, "throughput"),
        "latency",
        "Selects the defaults of the next three variables, in parentheses: latency; throughput.",
    )
    linger_ms: int | None = variable(
        LINGER, None, "Milliseconds for which a record waits for others of its batch (0; 5)."
    )
    batch_bytes: int | None = variable(BYTES, None, "Maximum size of a partition's batch (256 KiB; 1 MiB).")
    fetch_bytes: int | None = variable(BYTES, None, "Maximum size of a partition's fetch (2 MiB; 4 MiB).")
    compression: Compression = variable(choice(Compression, "lz4"), "none", "Compression of batches.")
    unkeyed: Unkeyed = variable(
        choice(Unkeyed, "spread"),
        "ordered",
        "Messages without a key: ordered: in one partition; spread: over all partitions.",
    )
    commit_interval: float = variable(SECONDS, 1.0, "Interval at which acknowledged offsets are committed.")
    session_timeout: float = variable(
        SECONDS, 10.0, "Time without a heartbeat after which a member's partitions are assigned to others."
    )
    isolation: Isolation = variable(
        choice(Isolation, "read_uncommitted"),
        "read_committed",
        "read_uncommitted: deliver records of open and aborted transactions too.",
    )
    max_redeliveries: int = variable(
        COUNT_OR_ZERO, 3, "Redeliveries of a record after nack() before it is dead-lettered."
    )

    @property
    def tuning(self) -> Tuning:
        """The values of the profile, with the variables that are set in their place."""
        given = {"linger_ms": self.linger_ms, "batch_bytes": self.batch_bytes, "fetch_bytes": self.fetch_bytes}
        return replace(_PROFILES[self.profile], **{name: value for name, value in given.items() if value is not None})

    def contradictions(self) -> Iterator[Problem]:
        """Yield problems of TLS, and of a SASL mechanism with missing or excess credentials."""
        yield from super().contradictions()
        mechanism, name = self.sasl_mechanism, self._name("sasl_mechanism")
        takes = {"sasl_oauth_token"} if mechanism == "OAUTHBEARER" else {"sasl_username", "sasl_password"}
        for field in ("sasl_oauth_token", "sasl_password", "sasl_username"):
            given, named = getattr(self, field) is not None, self._name(field)
            if mechanism is None and given:
                usable = "OAUTHBEARER" if field == "sasl_oauth_token" else "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
                yield Problem((field, "sasl_mechanism"), f"{named} requires {name}={usable}.")
            elif mechanism is not None and field in takes and not given:
                yield Problem((field, "sasl_mechanism"), f"{name}={mechanism} requires {named}.")
            elif mechanism is not None and given and field not in takes:
                yield Problem((field, "sasl_mechanism"), f"{name}={mechanism} does not use {named}; unset it.")

    def _credentials(self) -> Sequence[str]:
        return [field for field in ("sasl_password", "sasl_oauth_token") if getattr(self, field) is not None]

    def _hosts(self) -> Sequence[str]:
        return [server.host for server in self.servers]
