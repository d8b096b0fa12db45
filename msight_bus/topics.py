"""Topic names: one grammar for every backend.

A topic is a dotted name whose parts consist of ``[A-Za-z0-9_-]``. Such a name is valid as a Redis channel, a NATS subject and
a Kafka topic, and cannot inject a protocol command, as a NATS subject with a space or CR LF could. ``/`` separates parts too,
for the names of other programs; Kafka does not accept it (`Backend.check_topic`).
"""

from __future__ import annotations

import re

from msight_bus.errors import TopicError

MAX_TOPIC_BYTES = 200
"""Maximum bytes of a topic. Kafka accepts 249; the difference leaves room for suffixes, as of dead-letter topics."""

NODES_TOPIC = "_msight.nodes"
"""The reserved topic on which nodes announce themselves."""

ALIVE_TOPIC = "_msight.alive."
"""Prefix of the reserved topics to which running nodes subscribe, so that observers can ask the broker for the node."""

PING_TOPIC = "_msight.ping"
"""The reserved topic of ``msight-bus ping``."""

SEQUENCE_TOPIC = "_msight.seq"
"""The reserved topic on which the last sequences of idle publishers are announced."""

_GRAMMAR = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]*(?:[./][A-Za-z0-9_-]+)*", re.ASCII)
_ACCEPTED = "ASCII letters, digits, '_' and '-' are accepted, in parts joined by dots"
_checked: dict[str, None] = {}
_CHECKED_LIMIT = 4096


def check_topic(topic: str) -> str:
    """Return ``topic`` if the name is valid on every backend, or with ``/`` on every backend except Kafka.

    Raises:
        TopicError: ``topic`` is not valid; the text names the accepted characters.
    """
    try:
        if topic in _checked:
            return topic
    except TypeError:
        pass
    if not isinstance(topic, str):
        raise TopicError(
            f"A topic must be a str, not {type(topic).__name__}; for example 'intersection.cam_ne'.", topic=topic
        )
    if not _GRAMMAR.fullmatch(topic) or len(topic) > MAX_TOPIC_BYTES:
        raise TopicError(
            f"{quoted_topic(topic)} is not a valid topic: {_reason(topic)} For example 'intersection.cam_ne'.",
            topic=topic,
        )
    if len(_checked) >= _CHECKED_LIMIT:
        _checked.clear()
    _checked[topic] = None
    return topic


def quoted_topic(topic: str) -> str:
    """Return a name in quotation marks for an error, escaped and shortened."""
    return repr(topic if len(topic) <= 60 else topic[:57] + "...")


def _reason(topic: str) -> str:
    if not topic:
        return "the name is empty."
    if len(topic.encode(errors="replace")) > MAX_TOPIC_BYTES:
        return f"the name has {len(topic.encode(errors='replace'))} bytes, and at most {MAX_TOPIC_BYTES} are accepted."
    if topic.startswith("_"):
        return "names that begin with '_' are reserved for the bus."
    if "" in re.split("[./]", topic):
        return f"a part before or after a {'dot' if '' in topic.split('.') else 'slash'} is empty."
    if "*" in topic or topic.endswith(">"):
        return f"only a subscription accepts a pattern; {_ACCEPTED}."
    return f"{_ACCEPTED}, or by '/' except on Kafka."


def check_group(group: str) -> str:
    """Return ``group``, the name of a consumer group or queue group, if the name is valid on every backend.

    Raises:
        TopicError: ``group`` is not valid; group names have the grammar of topics, without ``/``.
    """
    if not isinstance(group, str):
        raise TopicError(
            f"A group name must be a str, not {type(group).__name__}; for example 'detectors'.", topic=group
        )
    if not _GRAMMAR.fullmatch(group) or "/" in group or len(group) > MAX_TOPIC_BYTES:
        raise TopicError(
            f"{group!r:.80} is not a valid group name: {_ACCEPTED}, at most {MAX_TOPIC_BYTES} bytes. For example 'detectors'.",
            topic=group,
        )
    return group
