"""A topic's id, by which one that was deleted and made anew differs from its namesake (KIP-516).

aiokafka asks for metadata in versions without it.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, ClassVar, NamedTuple

from aiokafka.errors import LeaderNotAvailableError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)


class TopicIdentity(NamedTuple):
    """What tells a topic from its namesakes.

    Attributes:
        id: its id, 16 bytes.
        partitions: how many it has.
    """

    id: bytes
    partitions: int


class _Uuid:
    """16 bytes."""

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value


class _MetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replica_nodes", CompactArray(Int32)),
                        ("isr_nodes", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicIdentityRequest(Request[_MetadataRequestStruct]):
    """Ask for the identity of one topic, without creating it."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, False, {})


def read_identity(response: Any, topic: str) -> TopicIdentity | None:
    """The topic's identity in a response; ``None`` if it does not exist.

    Raises:
        KafkaError: the broker did not say, or the topic is still being made.
    """
    for code, name, topic_id, _, partitions, *_ in response.topics:
        error = for_code(code)
        if name == topic and error is NoError:
            if any(partition[2] < 0 for partition in partitions):
                raise LeaderNotAvailableError(topic)
            return TopicIdentity(topic_id, len(partitions))
        if name == topic and error not in (NoError, UnknownTopicOrPartitionError):
            raise error(topic)
    return None
