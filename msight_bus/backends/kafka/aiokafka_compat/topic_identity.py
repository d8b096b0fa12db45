"""Topics with their ids, which change when a topic is deleted and created again (KIP-516). aiokafka's metadata lacks them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import BytesIO
from typing import Any, ClassVar, NamedTuple

import aiokafka.errors as kafka_errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Schema, TaggedFields


class TopicIdentity(NamedTuple):
    """Distinguishes a topic from an earlier topic of the same name.

    Attributes:
        id: the topic id, 16 bytes; the same of all topics if the broker has no topic ids.
        partitions: number of partitions.
    """

    id: bytes
    partitions: int


class _Uuid:
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value


_INT16, _PARTITION, _LEADER_AT = struct.Struct(">h"), struct.Struct(">hiii"), 2
_TAGS = ("tags", TaggedFields)


class _Reader:
    """Reads the fields of a response of a flexible version in order. A schema of aiokafka takes ten times as long."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def skip(self, size: int) -> None:
        self._at += size

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def count(self) -> int:
        return max(0, self.varint() - 1)

    def take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def skip_tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.skip(self.varint())

    def error(self) -> type[kafka_errors.KafkaError]:
        error: type[kafka_errors.KafkaError] = kafka_errors.for_code(_INT16.unpack(self.take(2))[0])
        return error

    def has_leader(self) -> bool:
        """Read one partition and return whether it has a leader."""
        leader: int = _PARTITION.unpack(self.take(_PARTITION.size))[_LEADER_AT]
        for _ in range(3):  # replicas, in-sync and offline ones
            self.skip(4 * self.count())
        self.skip_tags()
        return leader >= 0


class _MetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema()

    def __init__(self) -> None:
        super().__init__()
        self.topics: dict[str, TopicIdentity | type[kafka_errors.KafkaError]] = {}

    @classmethod
    def decode(cls, data: BytesIO) -> _MetadataResponse:
        response, fields = cls(), _Reader(data.read())
        fields.skip(4)  # throttle time
        for _ in range(fields.count()):  # brokers
            fields.skip(4)
            fields.skip(fields.count())
            fields.skip(4)
            fields.skip(fields.count())
            fields.skip_tags()
        fields.skip(fields.count())  # cluster id
        fields.skip(4)  # controller
        for _ in range(fields.count()):
            error = fields.error()
            name = fields.take(fields.count()).decode()
            topic_id = fields.take(16)
            fields.skip(1)  # is internal
            leaders = [fields.has_leader() for _ in range(fields.count())]
            fields.skip(4)  # authorized operations
            fields.skip_tags()
            if error is kafka_errors.NoError and not all(leaders):
                error = kafka_errors.LeaderNotAvailableError
            response.topics[name] = TopicIdentity(topic_id, len(leaders)) if error is kafka_errors.NoError else error
        return response


class _MetadataRequestStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class TopicIdentitiesRequest(Request[_MetadataRequestStruct]):
    """A metadata request that does not create topics.

    The response's ``topics`` has, by name, each topic's `TopicIdentity`, or an error class: `LeaderNotAvailableError` if a
    partition has no leader.
    """

    API_KEY = 3

    def __init__(self, topics: Iterable[str] | None) -> None:
        """
        Args:
            topics: the topics to look up; ``None``: all that the user may describe.
        """
        self._topics: list[Any] | None = None if topics is None else [(bytes(16), topic, {}) for topic in topics]

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class(self._topics, False, False, False, {})
