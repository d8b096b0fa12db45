"""Requests of static members (KIP-345), in the versions that have a ``group.instance.id``; aiokafka has it in joining only.

Without it, the coordinator answers a replaced member as it answers one whose session has expired: that member would join again
and replace its successor.
"""

from __future__ import annotations

from typing import Any

from aiokafka.protocol.api import RequestStruct
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetCommitResponse_v3
from aiokafka.protocol.group import HeartbeatRequest, HeartbeatResponse_v1
from aiokafka.protocol.types import Array, Int32, Int64, Schema, String

_TEXT = String("utf-8")
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
        (
            "topics",
            Array(
                ("topic", _TEXT),
                (
                    "partitions",
                    Array(("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT)),
                ),
            ),
        ),
    )


class _HeartbeatRequest(HeartbeatRequest):
    """aiokafka's request, also in version 3."""

    def __init__(self, request: Any, instance_id: str) -> None:
        super().__init__(request._group, request._generation_id, request._member_id)
        self._instance_id = instance_id

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is not _Heartbeat:
            return super().build(request_struct_class)
        return _Heartbeat(self._group, self._generation_id, self._member_id, self._instance_id)


class _OffsetCommitRequest(OffsetCommitRequest):
    """aiokafka's request, also in version 7."""

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
