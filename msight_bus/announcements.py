"""Announcements of nodes and programs on the reserved topic ``_msight.nodes``, with their bounds. Pure.

Any client can publish on the topic, so an announcement is decoded into a bounded type, and nothing in it is imported or
evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, ClassVar

import msgspec

from msight_bus.patterns import MAX_NAMED

MAX_ANNOUNCEMENT_BYTES = 8192
MAX_PROGRAM_BYTES = 16_384
"""Maximum bytes of the announcement of a node, and of another program."""

MAX_PROGRAM_TOPICS = 50
"""Maximum number of topics that a program announces."""

LONGEST_INTERVAL = 3600.0
"""Maximum heartbeat interval, in seconds."""

# Shown in terminals: no control characters, no invisible and no bidirectional formatting characters.
_NAME = re.compile(r"^[A-Za-z0-9._-]{1,200}\Z")
Name = Annotated[str, msgspec.Meta(pattern=_NAME.pattern)]
Text = Annotated[
    str,
    msgspec.Meta(
        pattern="^[^\\x00-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
        "\\U000e0000-\\U000e007f]{0,200}\\Z"
    ),
]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ProcessId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class NodeStatus(StrEnum):
    """The status of a node; every value but ``LOST`` is self-reported."""

    REGISTERED = "REGISTERED"
    """The node is starting."""
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    """The node was stopped, or its input or source ended."""
    ERROR = "ERROR"
    """The node has ended with an error, or its handler has not responded for longer than ``heartbeat_tolerance``."""
    LOST = "LOST"
    """No heartbeat for three intervals, or for one and the broker reports no liveness subscription; set by the observer."""


class NodeMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of a node; totals are since its start.

    Attributes:
        messages_in: inputs received.
        messages_out: outputs published.
        rate_in: inputs a second over the last interval.
        rate_out: outputs a second over the last interval.
        queued: inputs in the node's queue now.
        dropped: inputs dropped by the queue, and outputs dropped while the broker was down.
        gaps, missing: gaps in the input and known missing messages; ``None`` where they are not counted.
        errors: errors in the node's code.
        undecodable: inputs that could not be decoded.
        latency_p50_ms, latency_p99_ms: milliseconds from the publish time of an input (by the publisher's clock) until the
            node's outputs were published; for a source, from receiving data until the data was published. Both are of
            the last interval with messages.
    """

    messages_in: Count = 0
    messages_out: Count = 0
    rate_in: Seconds = 0.0
    rate_out: Seconds = 0.0
    queued: Count = 0
    dropped: Count = 0
    gaps: Count | None = 0
    missing: Count | None = 0
    errors: Count = 0
    undecodable: Count = 0
    latency_p50_ms: Seconds | None = None
    latency_p99_ms: Seconds | None = None


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as announced.

    Attributes:
        name: the node's name; the workers of a group share the name.
        instance: random id, new at each start.
        instance_id: identity of the worker that outlives a restart, from the node's configuration; ``None`` if it has none.
        present: whether the node holds its liveness subscription, ``_msight.alive.<instance>``.
        type: the node's class, for display.
        device: the node's device, for display.
        host: the machine's name, for display.
        status: see `NodeStatus`.
        started_at: POSIX seconds by the node's clock.
        heartbeat_interval: seconds between two announcements.
        publish_topic: the output topic.
        subscribe_topic: the input, if it is one topic or pattern.
        output, inputs: the output topic, and the first topics and patterns of the input. Earlier versions do not have these
            fields; `publish_topic` and `subscribe_topic` are ``None`` for names that these versions refuse: they accept only
            letters, digits and ``._-``.
        more_inputs: number of the other topics and patterns of the input.
        group_id: consumer group or queue group; ``None`` without a group.
        last_heartbeat: POSIX seconds; in a registry by the observer's clock.
        ended: whether this was the node's last announcement.
        metrics: see `NodeMetrics`.
    """

    name: Name
    instance: Name
    type: Text
    device: Text
    host: Text = ""
    present: bool = False
    status: NodeStatus
    started_at: float
    heartbeat_interval: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_INTERVAL)]
    publish_topic: Name | None = None
    subscribe_topic: Name | None = None
    output: Text | None = None
    inputs: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_NAMED)] = ()
    more_inputs: Count = 0
    group_id: Name | None = None
    instance_id: Name | None = None
    last_heartbeat: float = 0.0
    ended: bool = False
    metrics: NodeMetrics = NodeMetrics()

    def __post_init__(self) -> None:
        """Derive the fields that earlier versions do not announce from those that they do."""
        if self.output is None:
            msgspec.structs.force_setattr(self, "output", self.publish_topic)
        if not self.inputs and self.subscribe_topic is not None:
            msgspec.structs.force_setattr(self, "inputs", (self.subscribe_topic,))

    @property
    def label(self) -> str:
        """The name, for display."""
        return self.name

    @property
    def outputs(self) -> tuple[str, ...]:
        """The output topic, if there is one."""
        return () if self.output is None else (self.output,)


class ProgramTopic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A topic of a program, or a pattern to which it subscribes.

    Attributes:
        topic: the topic or pattern.
        published: whether the program has published on the topic.
        subscribed: whether the program subscribes to the topic or pattern.
        rate_out: messages a second published over the last interval.
        rate_in: messages a second received over the last interval; ``None`` if unknown, for several patterns of a subscription.
    """

    topic: Text
    published: bool = False
    subscribed: bool = False
    rate_out: Seconds = 0.0
    rate_in: Seconds | None = 0.0


class ProgramInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One bus of a program, without the nodes that run on it, as announced. Earlier versions ignore the announcement.

    Attributes:
        name: the device's name (``MSIGHT_EDGE_DEVICE_NAME``); default: the machine's name.
        instance: random id of the bus.
        present: whether the bus holds the liveness subscription ``_msight.alive.<instance>``.
        host: the machine's name, for display.
        process: the process id.
        status: ``RUNNING``, ``STOPPED`` after the bus was closed, or ``LOST``, set by the observer.
        started_at: POSIX seconds by the program's clock.
        heartbeat_interval: seconds between two announcements.
        topics: the busiest topics, at most `MAX_PROGRAM_TOPICS`.
        more_topics: number of the other topics.
        last_heartbeat: POSIX seconds; in a registry by the observer's clock.
        ended: whether this was the last announcement.
    """

    name: Text
    instance: Name
    host: Text
    process: ProcessId
    present: bool = False
    status: NodeStatus = NodeStatus.RUNNING
    started_at: float
    heartbeat_interval: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_INTERVAL)]
    topics: Annotated[tuple[ProgramTopic, ...], msgspec.Meta(max_length=MAX_PROGRAM_TOPICS)]
    more_topics: Count = 0
    last_heartbeat: float = 0.0
    ended: bool = False
    instance_id: ClassVar[None] = None

    @property
    def label(self) -> str:
        """Name and process id, for display."""
        return f"{self.name}[{self.process}]"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The topics that the program publishes on."""
        return tuple([one.topic for one in self.topics if one.published])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics and patterns to which the program subscribes."""
        return tuple([one.topic for one in self.topics if one.subscribed])


_decode_node = msgspec.json.Decoder(NodeInfo).decode
_decode_program = msgspec.json.Decoder(ProgramInfo).decode


def decode_announcement(payload: bytes) -> NodeInfo | ProgramInfo | None:
    """Decode an announcement; ``None`` if it is too large or not valid.

    LOST is set by observers only: an announced LOST is ignored.
    """
    kinds: tuple[tuple[int, Callable[[bytes], NodeInfo | ProgramInfo]], ...] = (
        (MAX_ANNOUNCEMENT_BYTES, _decode_node),
        (MAX_PROGRAM_BYTES, _decode_program),
    )
    for most, decode in kinds:
        if len(payload) <= most:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                info = decode(payload)
                if info.status is NodeStatus.LOST:
                    alive = NodeStatus.STOPPED if info.ended else NodeStatus.RUNNING
                    info = msgspec.structs.replace(info, status=alive)
                return info
    return None


def announced_topics(output: str | None, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a `NodeInfo` that describe its topics, by their names on the broker."""
    single = inputs[0] if len(inputs) == 1 else None
    return {
        "publish_topic": output if output and _NAME.match(output) else None,
        "subscribe_topic": single if single and _NAME.match(single) else None,
        "output": output,
        "inputs": tuple(inputs[:MAX_NAMED]),
        "more_inputs": max(0, len(inputs) - MAX_NAMED),
    }
