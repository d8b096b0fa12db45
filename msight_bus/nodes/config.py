"""The configuration of a node, with MSight's field names; checked when it is created."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, Self

from msight_bus.announcements import LONGEST_INTERVAL
from msight_bus.backends.base import Start
from msight_bus.bus import Bus, check_start
from msight_bus.data.types import payload_type
from msight_bus.errors import BusError, ConfigError, TopicError
from msight_bus.patterns import check_entries, matcher, named
from msight_bus.payload import check_key
from msight_bus.queue_policy import QueuePolicy
from msight_bus.settings import BusSettings
from msight_bus.topics import MAX_TOPIC_BYTES, check_group, check_topic

_GROUP_SUFFIX = "_group"
_LONGEST_NAME = MAX_TOPIC_BYTES - len(_GROUP_SUFFIX)
_MOST_HANDLERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Configuration of one node.

    Attributes:
        name: name of the node, with the grammar of a topic; the workers of a group share one name.
        publish_topic_name: topic on which a source or processing node publishes.
        subscribe_topic_name: topic, pattern, or list of topics and patterns to which a processing node or sink subscribes; see
            `Bus.subscribe`.
        publish_topic_data_type: type of every output, as for `Bus.publisher`; default: any publishable value.
        subscribe_topic_data_type: type to which inputs are decoded, as for `Bus.subscribe`; ``bytes``: without decoding.
            Default: a payload in the format of ``Data`` is decoded to the class that it names; others are ``bytes``. The type
            parameters of a typed node, ``ProcessingNode[In, Out]``, set both; these fields may narrow them to subclasses.
        heartbeat_update_interval: seconds between two heartbeats.
        action_on_error: ``"stop"`` ends the node at an error in its code; ``"continue"`` counts the error and continues.
        heartbeat_tolerance: seconds for which the node's code may handle one item before the node is announced with status
            ``ERROR``; 0 or less: no limit. Default: 60 for a source, no limit for other nodes.
        heartbeat_checking_duration: seconds between two checks of ``heartbeat_tolerance``.
        gap: number of items to skip after each handled item.
        group_id: consumer group; default: ``<name>_group`` on Kafka, none on other backends.
        sensor_name: name of the sensor, for the node's code; the bus does not use this field.
        logging_level: level of the node's logger, for example ``"DEBUG"``; default: inherited.
        queue: queue policy for inputs that arrive faster than the node handles them; default: the backend's.
        concurrency: number of inputs handled concurrently. Outputs keep the order of their inputs.
        deadline: seconds without an input after which the bus reports a `DeadlineMissed`; see `Bus.subscribe`.
        lifespan: age in seconds at which an input is dropped instead of handled; see `Bus.subscribe`.
        dead_letter_topic_name: topic for inputs that fail with ``"continue"`` or cannot be decoded; they are published unchanged,
            with the headers ``msight-dead-topic`` and ``msight-dead-error``. The name must end in ``MSIGHT_DEAD_LETTER_SUFFIX``,
            so that no pattern matches it; checked when the node starts.
        key: key of each output without a key of its own; see `Outgoing`.
        while_disconnected: ``"wait"``: outputs wait until the broker is reconnected; ``"drop"``: they are dropped and counted.
        spread: on Kafka, whether outputs without a key are written to all partitions in turn, so that a group shares them and
            order holds within a partition only; default: ``MSIGHT_KAFKA_UNKEYED``.
        start: where a group without a committed position begins, see `Bus.subscribe`; default ``"latest"``.
        instance_id: stable identity of this worker, such as ``"worker-1"``, unique among the workers of the node; default: none.
            In a registry, a worker that is started again replaces its earlier entry. On Kafka, this is the ``group.instance.id``:
            a worker that is killed or stopped, and started again within ``MSIGHT_KAFKA_SESSION_TIMEOUT``, gets its partitions
            at once, and the other workers keep theirs. A worker with this identity never leaves the group, even when it stops
            gracefully, as with Kafka's Java client: no other worker gets its partitions until that time is over. A second
            running worker with the same identity ends the first with a `ClosedError`; on other backends both run, and
            ``msight-bus doctor`` reports them.

    Raises:
        ConfigError: one or more fields are wrong; the error lists all of them.
    """

    name: str
    publish_topic_name: str | None = None
    subscribe_topic_name: str | Sequence[str] | None = None
    publish_topic_data_type: Any = None
    subscribe_topic_data_type: Any = None
    heartbeat_update_interval: float = 10.0
    action_on_error: Literal["stop", "continue"] = "stop"
    heartbeat_tolerance: float | None = None
    heartbeat_checking_duration: float = 15.0
    gap: int = 0
    group_id: str | None = None
    sensor_name: str | None = None
    logging_level: str | None = None
    queue: QueuePolicy | None = None
    concurrency: int = 1
    deadline: float | None = None
    lifespan: float | None = None
    dead_letter_topic_name: str | None = None
    key: str | None = None
    while_disconnected: Literal["wait", "drop"] = "wait"
    spread: bool | None = None
    start: Start | None = None
    instance_id: str | None = None

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """
        Raises:
            ConfigError: there is no such field.
        """
        known = cls.__dataclass_fields__
        problems = [
            f"NodeConfig has no field {name!r}; did you mean {get_close_matches(name, known, n=1, cutoff=0)[0]!r}?"
            for name in given
            if name not in known
        ]
        if problems:
            raise ConfigError(problems)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        problems = [
            f"NodeConfig.{field.name} must be {_CHECKS[field.name][1]}, not {value!r:.100}."
            for field in fields(self)
            if ((value := getattr(self, field.name)) is not None or field.default is not None)
            and field.name in _CHECKS
            and not _CHECKS[field.name][0](value)
        ]
        topics = self.subscribe_topic_name
        if isinstance(topics, list):  # a list can change
            object.__setattr__(self, "subscribe_topic_name", tuple(topics))
        try:
            if topics is not None:
                check_entries(topics)
                problems += self._loops(BusSettings.dead_letter_suffix)
            if self.start is not None:
                check_start(self.start, self.inputs)
        except TopicError as error:
            problems.append(
                f"NodeConfig.subscribe_topic_name must be a topic, a pattern or a list of these, not {topics!r:.100}: {error}"
            )
        except ValueError as error:
            problems.append(f"NodeConfig.{error}")
        if problems:
            raise ConfigError(problems)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics and patterns of ``subscribe_topic_name``."""
        topics = self.subscribe_topic_name
        return () if topics is None else (topics,) if isinstance(topics, str) else tuple(topics)

    def receives(self, topic: str | None, dead_letter_suffix: str) -> bool:
        """Return whether a topic is one of the inputs, or one of their patterns matches it."""
        return isinstance(topic, str) and matcher(self.inputs, dead_letter_suffix)(topic)

    def check_for(self, bus: Bus) -> None:
        """Check what depends on the bus: its broker and its settings.

        Raises:
            TopicError: the broker does not accept a topic, or ``MSIGHT_TOPIC_MAP`` maps the name to another topic.
            ConfigError: the dead-letter topic does not end in ``MSIGHT_DEAD_LETTER_SUFFIX``, or the node would receive its own
                messages.
        """
        dead, suffix = self.dead_letter_topic_name, bus.settings.dead_letter_suffix
        for topic in (*self.inputs, self.publish_topic_name, dead):
            if topic is not None:
                bus.core.on_broker(topic)
        problems = self._loops(suffix)
        if dead is not None and not dead.endswith(suffix):
            problems.append(
                f"NodeConfig.dead_letter_topic_name of {self.name!r} must end in {suffix!r} (MSIGHT_DEAD_LETTER_SUFFIX), so that "
                f"no pattern matches dead letters, such as 'intersection.cam_ne{suffix}', not {dead!r}."
            )
        if problems:
            raise ConfigError(problems)

    def _loops(self, dead_letter_suffix: str) -> list[str]:
        """Return the problems of topics on which the node publishes and which it receives."""
        looped = ["publish_topic_name"] if self.receives(self.publish_topic_name, dead_letter_suffix) else []
        if self.dead_letter_topic_name in self.inputs:  # a pattern matches no dead letters
            looped.append("dead_letter_topic_name")
        return [
            f"NodeConfig.{name} must differ from the topics of subscribe_topic_name and match none of its patterns: "
            f"a node with the input {named(self.inputs)} would receive its own messages on {getattr(self, name)}."
            for name in looped
        ]

    def group_where_kept(self) -> str:
        """Return the consumer group for a backend with persistence, where a group owns the position."""
        return self.group_id or self.name + _GROUP_SUFFIX


def _passes(check: Callable[[Any], object]) -> Callable[[Any], bool]:
    """Return a predicate: whether ``check`` accepts a value without an error."""

    def passes(value: Any) -> bool:
        try:
            check(value)
        except (BusError, TypeError):
            return False
        return True

    return passes


def _one_of(*values: object) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (isinstance(value, str) and value == one) for one in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int, most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


Check = tuple[Callable[[Any], bool], str]
_TOPIC: Check = _passes(check_topic), "a topic such as 'intersection.cam_ne'"
_DATA: Check = (
    _passes(payload_type),
    (
        "Data, a subclass of Data or a union of these, a msgspec.Struct, a dataclass, a pydantic model, bytes, or Json[...]"
    ),
)
_TEXT: Check = lambda value: isinstance(value, str), "a str"
_SECONDS: Check = lambda value: _is_number(value) and value > 0, "a number of seconds above 0"

_CHECKS: dict[str, Check] = {
    "name": (
        lambda value: _passes(check_group)(value) and len(value) <= _LONGEST_NAME,
        f"letters, digits, '_' and '-', in parts joined by dots, at most {_LONGEST_NAME} bytes, such as 'detector'",
    ),
    "publish_topic_name": _TOPIC,
    "publish_topic_data_type": _DATA,
    "subscribe_topic_data_type": _DATA,
    "heartbeat_update_interval": (
        lambda value: _is_number(value) and 0 < value <= LONGEST_INTERVAL,
        f"a number of seconds above 0, at most {LONGEST_INTERVAL:g}",
    ),
    "action_on_error": (_one_of("stop", "continue"), "'stop' or 'continue'"),
    "heartbeat_tolerance": (_is_number, "a number of seconds, or 0 for no limit"),
    "heartbeat_checking_duration": _SECONDS,
    "gap": (_whole(0, math.inf), "a whole number of at least 0"),
    "group_id": (_passes(check_group), "a group name such as 'detectors'"),
    "sensor_name": _TEXT,
    "logging_level": (
        lambda value: isinstance(value, str) and value.upper() in logging.getLevelNamesMapping(),
        "the name of a logging level such as 'INFO'",
    ),
    "queue": (lambda value: isinstance(value, QueuePolicy), "a QueuePolicy such as QueuePolicy.block()"),
    "concurrency": (_whole(1, _MOST_HANDLERS), f"a whole number from 1 to {_MOST_HANDLERS}"),
    "deadline": _SECONDS,
    "lifespan": _SECONDS,
    "dead_letter_topic_name": _TOPIC,
    "key": (lambda value: isinstance(value, str) and _passes(check_key)(value), "a str such as 'cam_ne'"),
    "while_disconnected": (_one_of("wait", "drop"), "'wait' or 'drop'"),
    "spread": (_one_of(True, False), "True or False"),
    "instance_id": (
        _passes(check_group),
        f"letters, digits, '_' and '-', in parts joined by dots, at most {MAX_TOPIC_BYTES} bytes, such as 'worker-1'",
    ),
}
