"""Deadlines and limits. All are enforced before the work is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from msight_bus.settings.kinds import Bytes, Count, CountOrZero, Patience, Seconds, whole
from msight_bus.settings.problems import Problem
from msight_bus.settings.section import Section

_MIB = 1024 * 1024


class Limits(Section):
    """How long to wait and how much to take. Times are in seconds."""

    prefix: ClassVar[str] = "MSIGHT_"

    connect_timeout: Seconds = Field(default=10.0, description="One try to connect, in seconds.")
    publish_timeout: Seconds = Field(
        default=10.0, description="A publish until it is confirmed or its outcome unknown, in seconds."
    )
    block_timeout: Seconds = Field(
        default=2.0,
        description="How long a full queue that blocks holds up Redis or NATS before it drops, in seconds.",
    )
    drain_timeout: Seconds = Field(default=10.0, description="Until drain() gives up, in seconds.")
    ping_interval: Seconds = Field(
        default=5.0,
        description="How often a quiet connection is tried, in seconds; a dead link is noticed after this "
        "and pong_timeout.",
    )
    pong_timeout: Seconds = Field(default=5.0, description="How long the broker may take to answer that, in seconds.")
    reconnect_limit: Count | None = Field(
        default=None, description="Tries to reconnect before giving up; unset, it never does."
    )
    reconnect_min: Seconds = Field(default=0.05, description="Pause before the first try to reconnect, in seconds.")
    reconnect_max: Seconds = Field(default=1.0, description="Longest pause between tries to reconnect, in seconds.")
    refusal_patience: Patience = Field(
        default=60.0,
        description="Until a refusal on reconnecting is final, where secrets or certificates are files, in seconds or inf.",
    )
    announce_interval: Seconds = Field(
        default=1.0,
        description="How often the last sequences of topics that have gone quiet are announced, in seconds.",
    )
    publisher_topics: Count = Field(
        default=100_000,
        description="Topics whose counters a bus keeps for publishing; the least recently used goes first.",
    )
    max_message_bytes: Bytes = Field(
        default=64 * _MIB, description="Largest message, in bytes, where the broker takes as much."
    )
    max_decoded_bytes: Bytes = Field(
        default=64 * _MIB, description="Largest payload that is decoded, and its memory, in bytes."
    )
    max_nesting: Annotated[int, whole(1, 200, "32")] = Field(
        default=32, description="Maps and arrays inside each other in a payload that is decoded."
    )
    max_header_count: CountOrZero = Field(default=64, description="Headers of a message.")
    max_header_bytes: Bytes = Field(default=16 * 1024, description="Headers of a message together, in bytes.")
    max_in_flight: Count = Field(default=10_000, description="Messages of a publisher() that are not confirmed yet.")
    queue_messages: Count = Field(default=10_000, description="Messages that a subscription queues.")
    queue_bytes: Bytes = Field(default=32 * _MIB, description="Payloads that a subscription queues, in bytes.")

    def contradictions(self) -> Iterator[Problem]:
        """A shortest pause that is longer than the longest."""
        if self.reconnect_min > self.reconnect_max:
            sentence = f"{self._name('reconnect_min')} must not be over {self._name('reconnect_max')}."
            yield Problem(("reconnect_min", "reconnect_max"), sentence)
