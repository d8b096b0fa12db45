"""Requests that aiokafka does not have, or not in the version that has a field: static members, and ends of leader epochs."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetCommitResponse_v3
from aiokafka.protocol.group import HeartbeatRequest, HeartbeatResponse_v1
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema, String

_TEXT = String("utf-8")


def _by_topic(*fields: Any) -> tuple[str, Array]:
    """Return the schema of an array of topics, each with an array of partitions with these fields."""
    return "topics", Array(("topic", _TEXT), ("partitions", Array(*fields)))


# -- static members (KIP-345): the versions with a ``group.instance.id``, which aiokafka has in the request to join only. Without
# it, the coordinator answers a replaced member as it answers one whose session has expired: that member would join again and
# replace its successor.

_MEMBER = (("group", _TEXT), ("generation_id", Int32), ("member_id", _TEXT), ("group_instance_id", _TEXT))


class _Heartbeat(RequestStruct):
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = HeartbeatResponse_v1
    SCHEMA = Schema(*_MEMBER)


class _OffsetCommit(RequestStruct):
    API_KEY = 8
    API_VERSION = 7
    RESPONSE_TYPE = OffsetCommitResponse_v3
    SCHEMA = Schema(
        *_MEMBER,
        _by_topic(("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT)),
    )


class _HeartbeatRequest(HeartbeatRequest):
    """aiokafka's request, extended by version 3."""

    def __init__(self, request: Any, instance_id: str) -> None:
        super().__init__(request._group, request._generation_id, request._member_id)
        self._instance_id = instance_id

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is not _Heartbeat:
            return super().build(request_struct_class)
        return _Heartbeat(self._group, self._generation_id, self._member_id, self._instance_id)


class _OffsetCommitRequest(OffsetCommitRequest):
    """aiokafka's request, extended by version 7."""

    def __init__(self, request: Any, instance_id: str) -> None:
        super().__init__(
            request._consumer_group,
            request._consumer_group_generation_id,
            request._consumer_id,
            request._retention_time,
            request._topics,
        )
        self._instance_id = instance_id

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is not _OffsetCommit:
            return super().build(request_struct_class)
        topics = [
            (topic, [(number, offset, -1, metadata) for number, offset, metadata in partitions])
            for topic, partitions in self._topics
        ]
        return _OffsetCommit(
            self._consumer_group, self._consumer_group_generation_id, self._consumer_id, self._instance_id, topics
        )


_HeartbeatRequest._CLASSES = (*HeartbeatRequest._CLASSES, _Heartbeat)
_OffsetCommitRequest._CLASSES = (*OffsetCommitRequest._CLASSES, _OffsetCommit)


def with_instance_id(request: Any, instance_id: str) -> Any:
    """Return the request of a static member for a request of aiokafka's coordinator."""
    if isinstance(request, HeartbeatRequest):
        return _HeartbeatRequest(request, instance_id)
    if isinstance(request, OffsetCommitRequest):
        return _OffsetCommitRequest(request, instance_id)
    return request


def error_codes(request: Any, response: Any) -> set[int]:
    """Return the error codes of a response to one of these requests, or to a request to join or to sync."""
    if isinstance(request, OffsetCommitRequest):
        return {code for _, partitions in response.topics for _, code in partitions}
    return {getattr(response, "error_code", 0)}


# -- the end of a leader epoch (KIP-320)


class _EpochEndResponse(Response):
    API_KEY = 23
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        _by_topic(("error_code", Int16), ("partition", Int32), ("leader_epoch", Int32), ("end_offset", Int64)),
    )


class _EpochEndRequestStruct(RequestStruct):
    API_KEY = 23
    API_VERSION = 3
    RESPONSE_TYPE = _EpochEndResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        _by_topic(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32)),
    )


class EpochEndRequest(Request[_EpochEndRequestStruct]):
    """A request to the leader of a partition for the end of a leader epoch. Brokers before Kafka 2.3 do not answer consumers."""

    API_KEY = 23

    def __init__(self, where: TopicPartition, epoch: int) -> None:
        self._where = where
        self._epoch = epoch

    def build(self, request_struct_class: type[_EpochEndRequestStruct]) -> _EpochEndRequestStruct:
        return request_struct_class(-1, [(self._where.topic, [(self._where.partition, -1, self._epoch)])])


def read_epoch_end(response: Any) -> tuple[int, int]:
    """Return error code and offset from the response to an `EpochEndRequest`.

    The offset is that after the last record of the epoch or, if the log has no record of it, of the last epoch before; -1 if the
    broker does not know.
    """
    ((_, ((code, _, _, end),)),) = response.topics
    return code, end
