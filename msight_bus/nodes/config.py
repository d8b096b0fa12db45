"""How one node is configured: MSight's names, checked when the configuration is made."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, Self

from msight_bus.data import Data
from msight_bus.errors import BusError, ConfigError
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
            f"NodeConfig.{field.name} {_CHECKS[field.name][1]}, not {value!r:.100}."
            for field in fields(self)
            if ((value := getattr(self, field.name)) is not None or field.default is not None)
            and not _CHECKS[field.name][0](value)
        ]
        for name in ("publish_topic_name", "dead_letter_topic_name"):
            if getattr(self, name) is not None and getattr(self, name) == self.subscribe_topic_name:
                problems.append(
                    f"NodeConfig.{name} is another topic than subscribe_topic_name: the node would take it again."
                )
        if problems:
            raise ConfigError(problems)

    def group_where_kept(self) -> str:
        """The consumer group on a backend that keeps messages: a position there belongs to a group."""
        return self.group_id or self.name + _GROUP_SUFFIX


def _passes(check: Callable[[Any], object]) -> Callable[[Any], bool]:
    """Return whether ``check`` raises nothing."""

    def passes(value: Any) -> bool:
        try:
            check(value)
        except BusError:
            return False
        return True

    return passes


def _one_of(*values: object) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (isinstance(value, str) and value == one) for one in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_data(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Data)


def _whole(least: int, most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


Check = tuple[Callable[[Any], bool], str]
_TOPIC: Check = _passes(check_topic), "is a topic such as 'intersection.cam_ne'"
_DATA: Check = _is_data, "is a subclass of Data"
_TEXT: Check = lambda value: isinstance(value, str), "is a str"
_SECONDS: Check = lambda value: _is_number(value) and value > 0, "is a number of seconds above 0"

_CHECKS: dict[str, Check] = {
    "name": (
        lambda value: _passes(check_group)(value) and len(value) <= _LONGEST_NAME,
        f"is letters, digits, '_' and '-', in parts joined by dots, at most {_LONGEST_NAME} bytes, such as 'detector'",
    ),
    "publish_topic_name": _TOPIC,
    "subscribe_topic_name": _TOPIC,
    "publish_topic_data_type": _DATA,
    "subscribe_topic_data_type": (lambda value: value is bytes or _is_data(value), _DATA[1]),
    "heartbeat_update_interval": (
        lambda value: _is_number(value) and 0 < value <= LONGEST_INTERVAL,
        f"is a number of seconds above 0, at most {LONGEST_INTERVAL:g}",
    ),
    "action_on_error": (_one_of("stop", "continue"), "is 'stop' or 'continue'"),
    "heartbeat_tolerance": (_is_number, "is a number of seconds, or 0 for never"),
    "heartbeat_checking_duration": _SECONDS,
    "gap": (_whole(0, math.inf), "is a whole number of at least 0"),
    "group_id": (_passes(check_group), "is a group name such as 'detectors'"),
    "sensor_name": _TEXT,
    "logging_level": (
        lambda value: isinstance(value, str) and value.upper() in logging.getLevelNamesMapping(),
        "is the name of a logging level such as 'INFO'",
    ),
    "queue": (lambda value: isinstance(value, QueuePolicy), "is a QueuePolicy such as QueuePolicy.block()"),
    "concurrency": (_whole(1, _MOST_HANDLERS), f"is a whole number of at least 1 and at most {_MOST_HANDLERS}"),
    "deadline": _SECONDS,
    "lifespan": _SECONDS,
    "dead_letter_topic_name": _TOPIC,
    "key": (lambda value: isinstance(value, str) and _passes(check_key)(value), "is a str such as 'cam_ne'"),
    "while_disconnected": (_one_of("wait", "drop"), "is 'wait' or 'drop'"),
    "spread": (_one_of(True, False), "is True or False"),
}
