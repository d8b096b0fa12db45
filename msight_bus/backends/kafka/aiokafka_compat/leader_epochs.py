"""Requests for the end of a leader epoch (KIP-320), which aiokafka does not have."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema, String

_TOPIC = ("topic", String("utf-8"))


class _EpochEndResponse(Response):
    API_KEY = 23
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                _TOPIC,
                (
                    "partitions",
                    Array(("error_code", Int16), ("partition", Int32), ("leader_epoch", Int32), ("end_offset", Int64)),
                ),
            ),
        ),
    )


class _EpochEndRequestStruct(RequestStruct):
    API_KEY = 23
    API_VERSION = 3
    RESPONSE_TYPE = _EpochEndResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            Array(
                _TOPIC,
                ("partitions", Array(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32))),
            ),
        ),
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
