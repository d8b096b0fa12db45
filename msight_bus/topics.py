"""Topic names: one grammar for every backend.

Dotted names whose parts use only ``[A-Za-z0-9_-]``: the common ground of a Redis channel, a NATS subject and a Kafka
topic, and too narrow to carry protocol (a NATS subject with a space or CR LF would inject a command).
"""

from __future__ import annotations

import re

from msight_bus.errors import TopicError

MAX_TOPIC_BYTES = 200
"""Kafka allows 249 bytes for a topic; the rest is left for suffixes such as the dead-letter topic's."""

NODES_TOPIC = "_msight.nodes"
"""Reserved: nodes announce themselves here."""

ALIVE_TOPIC = "_msight.alive."
"""Reserved: the start of a topic that one node subscribes to while it runs, so that others can ask the broker for it."""

SEQUENCE_TOPIC = "_msight.seq"
"""Reserved: a quiet publisher's last sequences are announced here."""

_GRAMMAR = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_ACCEPTED = "ASCII letters, digits, '_' and '-' are accepted, in parts joined by dots"
_checked: dict[str, None] = {}
_CHECKED_LIMIT = 4096


def check_topic(topic: str) -> str:
    """Return ``topic`` if it can be used on every backend.

    Raises:
        TopicError: it cannot; the message says what is accepted.
    """
    try:
        if topic in _checked:
            return topic
    except TypeError:
        pass
    if not isinstance(topic, str):
        raise TopicError(
            f"A topic is a str, not {type(topic).__name__}; for example 'intersection.cam_ne'.", topic=topic
        )
    if not _GRAMMAR.fullmatch(topic) or len(topic) > MAX_TOPIC_BYTES:
        raise TopicError(
            f"{_shown(topic)} is not a topic: {_reason(topic)} For example 'intersection.cam_ne'.", topic=topic
        )
    if len(_checked) >= _CHECKED_LIMIT:
        _checked.clear()
    _checked[topic] = None
    return topic


def _shown(topic: str) -> str:
    return repr(topic if len(topic) <= 60 else topic[:57] + "...")


def _reason(topic: str) -> str:
    if not topic:
        return "it is empty."
    if len(topic.encode(errors="replace")) > MAX_TOPIC_BYTES:
        return f"it has {len(topic.encode(errors='replace'))} bytes, and at most {MAX_TOPIC_BYTES} are accepted."
    if topic.startswith("_"):
        return "names that begin with '_' are reserved."
    if "" in topic.split("."):
        return "a part between dots is empty."
    if "*" in topic or topic.endswith(">"):
        return f"there are no wildcards, so subscribe to each topic; {_ACCEPTED}."
    return f"{_ACCEPTED}."


def check_group(group: str) -> str:
    """Return ``group`` (a consumer group or queue group) if it can be used on every backend.

    Raises:
        TopicError: it cannot; group names follow the same grammar as topics.
    """
    if not isinstance(group, str):
        raise TopicError(f"A group name is a str, not {type(group).__name__}; for example 'detectors'.", topic=group)
    if not _GRAMMAR.fullmatch(group) or len(group) > MAX_TOPIC_BYTES:
        raise TopicError(
            f"{group!r:.80} is not a group name: {_ACCEPTED}, at most {MAX_TOPIC_BYTES} bytes. For example 'detectors'.",
            topic=group,
        )
    return group
