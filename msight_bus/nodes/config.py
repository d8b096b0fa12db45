"""How one node is configured: MSight's names, checked when the configuration is made."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from msight_bus.data import Data
from msight_bus.errors import ConfigError, HeaderError, TopicError
from msight_bus.payload import check_key
from msight_bus.queues import QueuePolicy
from msight_bus.registry import LONGEST_INTERVAL
from msight_bus.topics import MAX_TOPIC_BYTES, check_group, check_topic

_GROUP_SUFFIX = "_group"
_LONGEST_NAME = MAX_TOPIC_BYTES - len(_GROUP_SUFFIX)
_MOST_HANDLERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Configuration of one node.

    Attributes:
        name: of the node; the workers of a group share it. The grammar is that of a topic.
        publish_topic_name: where a source or processing node publishes.
        subscribe_topic_name: what a processing or sink node takes.
        publish_topic_data_type: a ``Data`` class that every output must be; unset, anything publishable is.
        subscribe_topic_data_type: a ``Data`` class that inputs are decoded to, or ``bytes`` for payloads as they are.
            Unset, what looks like ``Data`` is decoded to the class that it names, and all else is ``bytes``.
        heartbeat_update_interval: seconds between two announcements of the node, by the clock.
        action_on_error: ``"stop"`` ends the node at an error in its code, ``"continue"`` counts it and goes on.
        heartbeat_tolerance: seconds that the node's code may take for one item before the node is announced with status
            ``ERROR``; 0 or less never does. By default 60 for a source, never for the others.
        heartbeat_checking_duration: seconds between two checks of that.
        gap: items to leave out after each one that is handled.
        group_id: consumer group; where a log is kept it is ``<name>_group`` if unset.
        sensor_name: for the node's own code.
        logging_level: of the node's logger, for example ``"DEBUG"``; unset, it is inherited.
        queue: what happens to inputs when the node is slower than they come; the backend's default if unset.
        concurrency: inputs handled at the same time. Outputs keep the order of their inputs.
        deadline: seconds without an input after which the bus reports a `DeadlineMissed`; see `Bus.subscribe`.
        lifespan: seconds after which an input is dropped instead of handled; see `Bus.subscribe`.
        dead_letter_topic_name: where inputs are published as they came that ``"continue"`` leaves behind or that cannot be
            decoded, with the headers ``msight-dead-topic`` and ``msight-dead-error``.
        key: of each output that brings none of its own, see `Outgoing`.
        while_disconnected: what a source does with its outputs while the broker is away: ``"wait"`` until it is back, or
            ``"drop"`` and count them.
        spread: on Kafka, whether outputs without a key go to all partitions in turn, so that a group shares them and order
            holds within a partition only; ``MSIGHT_KAFKA_UNKEYED`` decides if unset.

    Raises:
        ConfigError: fields are wrong; all of them are named at once.
    """

    name: str
    publish_topic_name: str | None = None
    subscribe_topic_name: str | None = None
    publish_topic_data_type: type[Data] | None = None
    subscribe_topic_data_type: type[Data] | type[bytes] | None = None
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

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[object], str | None]] = {
            "name": _check_name,
            "publish_topic_name": _check_topic,
            "subscribe_topic_name": _check_topic,
            "publish_topic_data_type": _check_data_type,
            "subscribe_topic_data_type": lambda kind: None if kind is bytes else _check_data_type(kind),
            "heartbeat_update_interval": lambda value: _check_seconds(value, LONGEST_INTERVAL),
            "action_on_error": _check_action,
            "dead_letter_topic_name": _check_topic,
            "key": _check_key,
            "while_disconnected": lambda value: None if value in ("wait", "drop") else "is 'wait' or 'drop'",
            "spread": lambda value: None if value is None or isinstance(value, bool) else "is True or False",
            "heartbeat_tolerance": _check_tolerance,
            "heartbeat_checking_duration": lambda value: _check_seconds(value, math.inf),
            "gap": lambda value: _check_whole(value, 0, None),
            "group_id": _check_group,
            "sensor_name": lambda value: None if value is None or isinstance(value, str) else "is a str",
            "logging_level": _check_level,
            "queue": lambda value: None if value is None or isinstance(value, QueuePolicy) else "is a QueuePolicy",
            "deadline": lambda value: None if value is None else _check_seconds(value, math.inf),
            "lifespan": lambda value: None if value is None else _check_seconds(value, math.inf),
            "concurrency": lambda value: _check_whole(value, 1, _MOST_HANDLERS),
        }
        problems: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            problem = checks[field.name](value)
            if problem is not None:
                problems.append(f"NodeConfig.{field.name} {problem}, not {value!r:.100}.")
        if self.publish_topic_name is not None and self.publish_topic_name == self.subscribe_topic_name:
            problems.append(
                "NodeConfig.publish_topic_name is another topic than subscribe_topic_name: the node would take its own outputs."
            )
        if self.dead_letter_topic_name is not None and self.dead_letter_topic_name == self.subscribe_topic_name:
            problems.append("NodeConfig.dead_letter_topic_name is another topic than subscribe_topic_name.")
        if problems:
            raise ConfigError(problems)

    def group_where_kept(self) -> str:
        """The consumer group on a backend that keeps messages: a position there belongs to a group."""
        return self.group_id or self.name + _GROUP_SUFFIX


def _check_name(value: object) -> str | None:
    try:
        if isinstance(value, str) and len(check_group(value)) <= _LONGEST_NAME:
            return None
    except TopicError:
        pass
    return (
        f"is letters, digits, '_' and '-', in parts joined by dots, at most {_LONGEST_NAME} bytes, such as 'detector'"
    )


def _check_topic(value: object) -> str | None:
    if value is None:
        return None
    try:
        check_topic(value)  # type: ignore[arg-type]  # it refuses what is no str
    except TopicError:
        return "is a topic such as 'intersection.cam_ne'"
    return None


def _check_group(value: object) -> str | None:
    if value is None:
        return None
    try:
        check_group(value)  # type: ignore[arg-type]  # it refuses what is no str
    except TopicError:
        return "is a group name such as 'detectors'"
    return None


def _check_key(value: object) -> str | None:
    try:
        check_key(value)  # type: ignore[arg-type]  # it refuses what is no text
    except HeaderError:
        return "is a str such as 'cam_ne'"
    return None if value is None or isinstance(value, str) else "is a str such as 'cam_ne'"


def _check_data_type(value: object) -> str | None:
    if value is None or (isinstance(value, type) and issubclass(value, Data)):
        return None
    return "is a subclass of Data"


def _check_action(value: object) -> str | None:
    return None if value in ("stop", "continue") else "is 'stop' or 'continue'"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_seconds(value: object, most: float) -> str | None:
    if isinstance(value, int | float) and _is_number(value) and 0 < value <= most:
        return None
    return "is a number of seconds above 0" + ("" if math.isinf(most) else f", at most {most:g}")


def _check_tolerance(value: object) -> str | None:
    return None if value is None or _is_number(value) else "is a number of seconds, or 0 for never"


def _check_whole(value: object, least: int, most: int | None) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most):
        return None
    return f"is a whole number of at least {least}" + ("" if most is None else f" and at most {most}")


def _check_level(value: object) -> str | None:
    levels = logging.getLevelNamesMapping()
    if value is None or (isinstance(value, str) and value.upper() in levels):
        return None
    return "is the name of a logging level such as 'INFO'"
