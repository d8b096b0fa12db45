"""msight_bus: live sensor streams between async Python programs, over Redis, NATS or Kafka.

The names below are imported at their first use, so that pytest, which imports the package for its fixture, starts without delay.
"""

from msight_bus import _ctrl_c as _ctrl_c  # first: handles Ctrl-C during the other imports, which take time

# isort: split

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msight_bus.announcements import NodeInfo, NodeMetrics, NodeStatus, ProgramInfo, ProgramTopic
    from msight_bus.bus import Bus, connect
    from msight_bus.capabilities import Capabilities
    from msight_bus.data import BytesData, Data, ImageData, SensorData
    from msight_bus.data.types import Json
    from msight_bus.errors import (
        AuthenticationError,
        BusError,
        BusyError,
        CapabilityWarning,
        ClosedError,
        ConfigError,
        ConnectionLostError,
        DecodeError,
        DrainTimeoutError,
        HeaderError,
        MessageTooLargeError,
        PayloadError,
        PublishTimeoutError,
        TopicError,
        UnsupportedError,
    )
    from msight_bus.events import BusEvent, DeadlineMissed, Disconnected, Gap, Reconnected, Refused
    from msight_bus.message import Message
    from msight_bus.nodes import NodeConfig, Outgoing, ProcessingNode, SinkNode, SourceNode, off_loop, paced, run_nodes
    from msight_bus.publisher import Publisher
    from msight_bus.queue_policy import QueuePolicy
    from msight_bus.registry import Registry
    from msight_bus.runtime import run
    from msight_bus.settings import BusSettings, ConfigWarning, InsecureWarning
    from msight_bus.subscription import Subscription, SubscriptionStats

__version__ = "0.2.0"

__all__ = [
    "AuthenticationError",
    "Bus",
    "BusError",
    "BusEvent",
    "BusSettings",
    "BusyError",
    "BytesData",
    "Capabilities",
    "CapabilityWarning",
    "ClosedError",
    "ConfigError",
    "ConfigWarning",
    "ConnectionLostError",
    "Data",
    "DeadlineMissed",
    "DecodeError",
    "Disconnected",
    "DrainTimeoutError",
    "Gap",
    "HeaderError",
    "ImageData",
    "InsecureWarning",
    "Json",
    "Message",
    "MessageTooLargeError",
    "NodeConfig",
    "NodeInfo",
    "NodeMetrics",
    "NodeStatus",
    "Outgoing",
    "PayloadError",
    "ProcessingNode",
    "ProgramInfo",
    "ProgramTopic",
    "PublishTimeoutError",
    "Publisher",
    "QueuePolicy",
    "Reconnected",
    "Refused",
    "Registry",
    "SensorData",
    "SinkNode",
    "SourceNode",
    "Subscription",
    "SubscriptionStats",
    "TopicError",
    "UnsupportedError",
    "connect",
    "off_loop",
    "paced",
    "run",
    "run_nodes",
]

_MODULES = {
    "announcements": ["NodeInfo", "NodeMetrics", "NodeStatus", "ProgramInfo", "ProgramTopic"],
    "bus": ["Bus", "connect"],
    "capabilities": ["Capabilities"],
    "data": ["BytesData", "Data", "ImageData", "SensorData"],
    "data.types": ["Json"],
    "errors": [
        "AuthenticationError",
        "BusError",
        "BusyError",
        "CapabilityWarning",
        "ClosedError",
        "ConfigError",
        "ConnectionLostError",
        "DecodeError",
        "DrainTimeoutError",
        "HeaderError",
        "MessageTooLargeError",
        "PayloadError",
        "PublishTimeoutError",
        "TopicError",
        "UnsupportedError",
    ],
    "events": ["BusEvent", "DeadlineMissed", "Disconnected", "Gap", "Reconnected", "Refused"],
    "message": ["Message"],
    "nodes": ["NodeConfig", "Outgoing", "ProcessingNode", "SinkNode", "SourceNode", "off_loop", "paced", "run_nodes"],
    "publisher": ["Publisher"],
    "queue_policy": ["QueuePolicy"],
    "registry": ["Registry"],
    "runtime": ["run"],
    "settings": ["BusSettings", "ConfigWarning", "InsecureWarning"],
    "subscription": ["Subscription", "SubscriptionStats"],
}
_MODULE_OF = {name: f"msight_bus.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'msight_bus' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
