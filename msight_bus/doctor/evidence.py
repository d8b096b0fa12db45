"""`Evidence`, the input of the checks, and `Finding`, their output. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from msight_bus.announcements import NodeInfo, NodeStatus, ProgramInfo, decode_announcement
from msight_bus.errors import TopicError
from msight_bus.message import Message
from msight_bus.patterns import TopicPattern, is_pattern
from msight_bus.registry import Registry
from msight_bus.settings import BusSettings
from msight_bus.topics import NODES_TOPIC

_MAX_KEPT = 10_000
"""Maximum number of topics and of hosts that are kept."""

_MAX_SESSIONS = 100


@dataclass(frozen=True)
class Finding:
    """A problem, and how to solve it.

    Attributes:
        check: name of the check.
        problem: the problem, as a sentence.
        advice: a command, a variable or an edit that solves the problem.
        fault: whether the exit status is 1; otherwise the finding is a note.
        about: the topic that the finding is about; empty if it concerns no single topic.
    """

    check: str
    problem: str
    advice: str
    fault: bool = True
    about: str = ""


@dataclass(frozen=True)
class GroupLag:
    """Lag of a consumer group on a topic.

    Attributes:
        group, topic: names of the group and the topic; ``topic`` is empty for a group without committed offsets and assigned
            partitions: Kafka deletes the offsets of a deleted topic.
        lag: records in the log after the committed offsets; ``None`` if no partition has a committed offset.
        uncommitted: number of assigned partitions without a committed offset, whose records are not in ``lag``.
        members: number of members with a partition of the topic; without a topic, of all members.
        beyond: committed offset and end of each partition, by number, whose committed offset is after the end of the log.
        deleted: whether the topic does not exist.
    """

    group: str
    topic: str
    lag: int | None
    uncommitted: int
    members: int
    beyond: dict[int, tuple[int, int]] = field(default_factory=dict)
    deleted: bool = False

    @property
    def name(self) -> str:
        """The topic, for display."""
        return f"{self.topic} (deleted)" if self.deleted else self.topic or "none (deleted, or nothing committed)"


@dataclass
class Seen:
    """The messages of one topic.

    Attributes:
        messages, keyed: number of messages, and of those with a key.
        largest: bytes of the largest payload.
        sessions: session ids of the publishers, at most `_MAX_SESSIONS`; ``None`` for foreign publishers.
        partitions: numbers of the partitions that the messages came from; empty without a log.
    """

    messages: int = 0
    keyed: int = 0
    largest: int = 0
    sessions: set[int | None] = field(default_factory=set)
    partitions: set[int] = field(default_factory=set)


@dataclass
class Evidence:
    """Settings, nodes and messages.

    Attributes:
        settings: the user's settings.
        topics: the topics and patterns to which the user limits the checks; empty: all.
        message_bytes: size of a message that the user wants to send; 0 if unknown.
        max_message_bytes: maximum bytes of a message that the connected backend accepts; 0 if not connected.
        seconds: duration of the observation.
        nodes, programs: the registry's nodes and other programs.
        seen: the observed messages, by topic.
        losses: number of gaps and of missing messages, by topic.
        clocks: by host, the shortest delay of a heartbeat in seconds, from its publish time by the host's clock to its arrival by
            this machine's clock.
    """

    settings: BusSettings
    topics: tuple[str, ...] = ()
    message_bytes: int = 0
    max_message_bytes: int = 0
    seconds: float = 0.0
    nodes: list[NodeInfo] = field(default_factory=list)
    programs: list[ProgramInfo] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    losses: dict[str, dict[str, int]] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=dict)

    def found(self, registry: Registry | None) -> None:
        """Take the nodes and programs of the registry."""
        if registry is not None:
            self.nodes, self.programs = list(registry), list(registry.programs)

    def add(self, message: Message) -> None:
        """Account for a message of any topic, including an announcement."""
        if message.topic == NODES_TOPIC:
            self._add_heartbeat(message)
        elif message.topic in self.seen or len(self.seen) < _MAX_KEPT:
            seen = self.seen.setdefault(message.topic, Seen())
            seen.messages += 1
            seen.keyed += message.key is not None
            seen.largest = max(seen.largest, len(message.payload))
            if len(seen.sessions) < _MAX_SESSIONS:
                seen.sessions.add(message.session)
            if message.position is not None:
                seen.partitions.add(message.position[0])

    def _add_heartbeat(self, message: Message) -> None:
        info = decode_announcement(message.payload)
        if message.published_at is None or info is None:
            return
        host = info.host
        if self.concerns(info) and (host in self.clocks or len(self.clocks) < _MAX_KEPT):
            self.clocks[host] = min(self.clocks.get(host, math.inf), message.received_at - message.published_at)

    def running(self) -> Iterator[NodeInfo | ProgramInfo]:
        """Yield the nodes and programs that run."""
        everyone: list[NodeInfo | ProgramInfo] = [*self.nodes, *self.programs]
        return (info for info in everyone if not info.ended and info.status is not NodeStatus.LOST)

    def running_nodes(self) -> Iterator[NodeInfo]:
        """Yield the nodes that run."""
        return (info for info in self.running() if isinstance(info, NodeInfo))

    def concerns(self, info: NodeInfo | ProgramInfo) -> bool:
        """Return whether a node or program has one of the topics to which the user limits the checks."""
        ends = {*info.inputs, *info.outputs}
        return not self.topics or any(
            matches(topic, end) or matches(end, topic) for topic in self.topics for end in ends
        )

    @property
    def largest(self) -> int:
        """Size in bytes of the largest message that was observed or that the user wants to send."""
        return max([self.message_bytes, *[seen.largest for seen in self.seen.values()]])


def matches(entry: str, topic: str) -> bool:
    """Return whether a topic or pattern matches a topic."""
    if entry == topic or not is_pattern(entry):
        return entry == topic
    with suppress(TopicError):
        return TopicPattern(entry, ".dead").matches(topic)
    return False
