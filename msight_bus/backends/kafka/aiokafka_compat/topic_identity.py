"""A topic's id, which changes when the topic is deleted and created again (KIP-516). aiokafka's metadata requests lack it."""

from __future__ import annotations

from io import BytesIO
from typing import Any, ClassVar, NamedTuple

import aiokafka.errors as kafka_errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields


class TopicIdentity(NamedTuple):
    """Distinguishes a topic from an earlier topic of the same name.

    Attributes:
        id: the topic id, 16 bytes.
        partitions: number of partitions.
    """

    id: bytes
    partitions: int


class _Uuid:
    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value


_TEXT = CompactString("utf-8")
_TAGS = ("tags", TaggedFields)
_NODES = CompactArray(Int32)


class _MetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), _TAGS)),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replica_nodes", _NODES),
                        ("isr_nodes", _NODES),
                        ("offline_replicas", _NODES),
                        _TAGS,
                    ),
                ),
                ("topic_authorized_operations", Int32),
                _TAGS,
            ),
        ),
        ("cluster_authorized_operations", Int32),
        _TAGS,
    )


class _MetadataRequestStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class TopicIdentityRequest(Request[_MetadataRequestStruct]):
    """A metadata request for one topic, with its id; does not create the topic."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, False, {})


def read_identity(response: Any, topic: str) -> TopicIdentity | None:
    """Return the topic's identity from the response; ``None`` if the topic does not exist.

    Raises:
        KafkaError: the broker refused, or a partition of the topic has no leader yet.
    """
    for code, name, topic_id, _, partitions, *_ in response.topics:
        error = kafka_errors.for_code(code)
        if name == topic and error is kafka_errors.NoError:
            if any(partition[2] < 0 for partition in partitions):
                raise kafka_errors.LeaderNotAvailableError(topic)
            return TopicIdentity(topic_id, len(partitions))
        if name == topic and error not in (kafka_errors.NoError, kafka_errors.UnknownTopicOrPartitionError):
            raise error(topic)
    return None
