"""Settings of the Kafka backend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from msight_bus.settings.addresses import HostPort
from msight_bus.settings.kinds import (
    Bytes,
    CountOrZero,
    Flag,
    HostPorts,
    Kind,
    Name,
    Seconds,
    Secret,
    choice,
    whole,
)
from msight_bus.settings.problems import Problem
from msight_bus.settings.tls import TlsSection, TlsSettings

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
Profile = Literal["latency", "throughput"]
Unkeyed = Literal["ordered", "spread"]
Isolation = Literal["read_committed", "read_uncommitted"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How records travel together.

    Attributes:
        linger_ms: a record waits for others up to so many milliseconds; with 0 only while another batch is on its way.
        batch_bytes: of a partition that are sent together.
        fetch_bytes: of a partition that are fetched together; a larger message comes all the same.
    """

    linger_ms: int
    batch_bytes: int
    fetch_bytes: int


_PROFILES: Mapping[Profile, Tuning] = {
    "latency": Tuning(linger_ms=0, batch_bytes=256 * 1024, fetch_bytes=2 * 1024 * 1024),
    "throughput": Tuning(linger_ms=5, batch_bytes=1024 * 1024, fetch_bytes=4 * 1024 * 1024),
}

# At 10 000 messages of 128 B a second, lingering for 5 ms took the produce requests from 669 to 185 a second and the
# publisher's CPU from 25 to 16 us a message; a stream without pauses fills its batches in either profile, equally fast.

_SUFFIX = re.compile(r"\.?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def _parse_suffix(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 50 or not _SUFFIX.fullmatch(value):
        raise ValueError
    return value


class KafkaSettings(TlsSection):
    """Where Kafka is, how to enter, and how records are kept and taken."""

    prefix: ClassVar[str] = "MSIGHT_KAFKA_"

    servers: HostPorts = Field(default=(HostPort("localhost", 9092),), description="Brokers to begin with.")
    sasl_mechanism: (
        Annotated[
            Mechanism,
            choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", example="SCRAM-SHA-512"),
        ]
        | None
    ) = Field(default=None, description="How to authenticate.")
    sasl_username: Name | None = Field(default=None, description="User, for PLAIN and SCRAM.")
    sasl_password: Secret | None = Field(default=None, description="Password of that user.")
    sasl_oauth_token: Secret | None = Field(default=None, description="Token, for OAUTHBEARER.")
    tls_verify: Flag = Field(default=True, description="Verify the broker's certificate.")
    tls_check_hostname: Flag = Field(default=True, description="Require that the certificate is for the broker's host.")
    partitions: Annotated[int, whole(1, 10_000, "4")] = Field(
        default=4, description="Partitions of a topic that is created."
    )
    replication: Annotated[int, whole(1, 100, "3")] | None = Field(
        default=None, description="Copies of a topic that is created; the broker's default if unset."
    )
    create_topics: Flag = Field(default=True, description="Create topics that do not exist.")
    profile: Annotated[Profile, choice("latency", "throughput", example="throughput")] = Field(
        default="latency", description="What the next three are tuned for where they are unset."
    )
    linger_ms: Annotated[int, whole(0, 60_000, "5")] | None = Field(
        default=None, description="How long a record waits for others to travel with, in milliseconds (0; 5)."
    )
    batch_bytes: Bytes | None = Field(
        default=None, description="How much of a partition travels together, in bytes (256 KiB; 1 MiB)."
    )
    fetch_bytes: Bytes | None = Field(
        default=None, description="How much of a partition is fetched at once, in bytes (2 MiB; 4 MiB)."
    )
    compression: Annotated[Compression, choice("none", "gzip", "snappy", "lz4", "zstd", example="lz4")] = Field(
        default="none", description="How batches are compressed."
    )
    unkeyed: Annotated[Unkeyed, choice("ordered", "spread", example="spread")] = Field(
        default="ordered",
        description="Whether messages without a key keep their publisher's order in one partition, or spread over all.",
    )
    commit_interval: Seconds = Field(default=1.0, description="How often finished positions are committed, in seconds.")
    session_timeout: Seconds = Field(
        default=10.0, description="After how long a silent member's partitions go to others, in seconds."
    )
    isolation: Annotated[Isolation, choice("read_committed", "read_uncommitted", example="read_uncommitted")] = Field(
        default="read_committed",
        description="Whether records of transactions are read once these are committed, or all of them at once.",
    )
    max_redeliveries: CountOrZero = Field(
        default=3, description="How often nack() brings a record again before it is set aside."
    )
    dead_letter_suffix: Annotated[
        str, Kind("the end of a topic name, of letters, digits, '_', '-' and '.'", ".dead", _parse_suffix)
    ] = Field(default=".dead", description="A topic's name and this is where its records are set aside.")

    @property
    def tuning(self) -> Tuning:
        """The profile, with what is set by itself instead."""
        given = {"linger_ms": self.linger_ms, "batch_bytes": self.batch_bytes, "fetch_bytes": self.fetch_bytes}
        return replace(_PROFILES[self.profile], **{name: value for name, value in given.items() if value is not None})

    @property
    def tls(self) -> TlsSettings:
        """How to encrypt connections."""
        return self._tls(enabled=self.use_tls, verify=self.tls_verify, check_hostname=self.tls_check_hostname)

    def contradictions(self) -> Iterator[Problem]:
        """A SASL mechanism without what it needs, or with what it does not take, besides those of TLS."""
        yield from super().contradictions()
        mechanism = self.sasl_mechanism
        fields = ("sasl_username", "sasl_password", "sasl_oauth_token")
        given = {field for field in fields if getattr(self, field) is not None}
        needed = {"sasl_oauth_token"} if mechanism == "OAUTHBEARER" else {"sasl_username", "sasl_password"}
        name = self._name("sasl_mechanism")
        if mechanism is None:
            for field in sorted(given):
                mechanisms = "OAUTHBEARER" if field == "sasl_oauth_token" else "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
                yield Problem((field, "sasl_mechanism"), f"{self._name(field)} needs {name}={mechanisms}.")
            return
        for field in sorted(needed - given):
            yield Problem((field, "sasl_mechanism"), f"{name}={mechanism} needs {self._name(field)}.")
        for field in sorted(given - needed):
            yield Problem((field, "sasl_mechanism"), f"{name}={mechanism} does not take {self._name(field)}; unset it.")

    def _credentials(self) -> Sequence[str]:
        fields = ("sasl_password", "sasl_oauth_token")
        return [field for field in fields if getattr(self, field) is not None]

    def _hosts(self) -> Sequence[str]:
        return [server.host for server in self.servers]
