"""Requests that describe consumer groups, including those of the consumer protocol (KIP-848), which aiokafka does not have."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any, ClassVar, NamedTuple

from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.admin import DescribeGroupsRequest
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

_TEXT, _TAGS = CompactString("utf-8"), ("tags", TaggedFields)
_STABLE = "Stable"


class GroupMembers(NamedTuple):
    """The members of a consumer group.

    Attributes:
        group: name of the group.
        is_stable: whether there are members, and no rebalance is in progress.
        assigned: the partitions of each member.
    """

    group: str
    is_stable: bool
    assigned: list[set[TopicPartition]]


class ClassicGroupsRequest(DescribeGroupsRequest):
    """A DescribeGroups request in a version before 3: aiokafka cannot decode a response of version 3 with several groups."""


ClassicGroupsRequest._CLASSES = DescribeGroupsRequest._CLASSES[:3]


def read_classic_groups(response: Any) -> Iterator[GroupMembers]:
    """Yield the groups of a response to a `ClassicGroupsRequest`, without those that the broker does not describe."""
    for code, group, state, protocol_type, _, members in response.groups:
        if code or state == "Dead" or protocol_type not in ("consumer", ""):
            continue
        yield GroupMembers(group, state == _STABLE, [_decode(member[-1]) for member in members])


def _decode(assignment: bytes) -> set[TopicPartition]:
    """Return the partitions of a member; none during a rebalance, and none from a client with an encoding of its own."""
    try:
        return set(ConsumerProtocolMemberAssignment.decode(assignment).partitions()) if assignment else set()
    except (ValueError, struct.error):
        return set()


class _Uuid:
    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_ASSIGNMENT = Schema(
    (
        "topic_partitions",
        CompactArray(("topic_id", _Uuid), ("topic_name", _TEXT), ("partitions", CompactArray(Int32)), _TAGS),
    ),
    _TAGS,
)


class _ConsumerGroupsResponse(Response):
    API_KEY = 69
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("error_code", Int16),
                ("error_message", _TEXT),
                ("group", _TEXT),
                ("state", _TEXT),
                ("group_epoch", Int32),
                ("assignment_epoch", Int32),
                ("assignor", _TEXT),
                (
                    "members",
                    CompactArray(
                        ("member_id", _TEXT),
                        ("instance_id", _TEXT),
                        ("rack_id", _TEXT),
                        ("member_epoch", Int32),
                        ("client_id", _TEXT),
                        ("client_host", _TEXT),
                        ("subscribed_topic_names", CompactArray(_TEXT)),
                        ("subscribed_topic_regex", _TEXT),
                        ("assignment", _ASSIGNMENT),
                        ("target_assignment", _ASSIGNMENT),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", Int32),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _ConsumerGroupsRequestStruct(RequestStruct):
    API_KEY = 69
    API_VERSION = 0
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _ConsumerGroupsResponse
    SCHEMA = Schema(("group_ids", CompactArray(_TEXT)), ("include_authorized_operations", Boolean), _TAGS)


class ConsumerGroupsRequest(Request[_ConsumerGroupsRequestStruct]):
    """A ConsumerGroupDescribe request, for groups of the consumer protocol of KIP-848.

    Sending it raises `IncompatibleBrokerVersion` where the broker does not know the request.
    """

    API_KEY = 69

    def __init__(self, groups: Iterable[str]) -> None:
        """
        Args:
            groups: names of groups; send the request to their coordinator.
        """
        self._groups = list(groups)

    def build(self, request_struct_class: type[_ConsumerGroupsRequestStruct]) -> _ConsumerGroupsRequestStruct:
        return request_struct_class(self._groups, False, {})


def read_consumer_groups(response: Any) -> Iterator[GroupMembers]:
    """Yield the groups of a response to a `ConsumerGroupsRequest`, without those that the broker does not describe."""
    for code, _, group, state, _, _, _, members, *_ in response.groups:
        if not code:
            yield GroupMembers(group, state == _STABLE, [_partitions(member[8]) for member in members])


def _partitions(assignment: Any) -> set[TopicPartition]:
    return {TopicPartition(topic, number) for _, topic, numbers, _ in assignment[0] for number in numbers}
