"""msight_bus: live sensor streams between async Python programs, over Redis, NATS or Kafka."""

from msight_bus import _ctrl_c as _ctrl_c  # first: handles Ctrl-C during the other imports, which take time
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
from msight_bus.message import Message
from msight_bus.nodes import NodeConfig, Outgoing, ProcessingNode, SinkNode, SourceNode, off_loop, paced, run_nodes
from msight_bus.publisher import Publisher
from msight_bus.queue_policy import QueuePolicy
from msight_bus.runtime import run
from msight_bus.settings import BusSettings, ConfigWarning
from msight_bus.subscription import Subscription, SubscriptionStats

__version__ = "0.2.0"

__all__ = [
    "AuthenticationError",
    "Bus",
    "BusError",
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
    "DecodeError",
    "DrainTimeoutError",
    "HeaderError",
    "ImageData",
    "Json",
    "Message",
    "MessageTooLargeError",
    "NodeConfig",
    "Outgoing",
    "PayloadError",
    "ProcessingNode",
    "PublishTimeoutError",
    "Publisher",
    "QueuePolicy",
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
