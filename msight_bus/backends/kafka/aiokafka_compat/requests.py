"""Produce, fetch and offset requests, and what their answers contain."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest

READ_UNCOMMITTED, READ_COMMITTED = 0, 1
LATEST, EARLIEST = -1, -2

FETCH_STRUCTS = tuple(each for each in FetchRequest._CLASSES if each.API_VERSION >= 4)
"""The versions of a fetch that have the ends of transactions."""

_INT16, _INT32 = struct.Struct(">h"), struct.Struct(">i")
_FETCHED = struct.Struct(">ihqq")
_ABORTED = struct.Struct(">qq")

_FETCH_WAIT_MS = 500
_FETCH_MAX_BYTES = 50 * 1024 * 1024


class Fetched(NamedTuple):
    """One partition's part of the answer to a fetch.

    Attributes:
        code: an error code, 0 without an error.
        end: the offset behind the last record of the log.
        stable: the offset of the first record of an open transaction, ``end`` without one.
        aborted: producer id and first offset of each aborted transaction.
        data: record batches; the last one may be cut short.
    """

    where: TopicPartition
    code: int
    end: int
    stable: int
    aborted: Sequence[tuple[int, int]]
    data: bytes | memoryview


def produce_request(batches: Mapping[TopicPartition, bytes], timeout: float) -> Any:
    """A request to append a batch to each partition, acknowledged by all in-sync replicas within ``timeout`` seconds."""
    topics = _by_topic({where: (data,) for where, data in batches.items()})
    return ProduceRequest(None, -1, int(timeout * 1000), topics)


def produce_errors(response: Any) -> Mapping[TopicPartition, int]:
    """The error code of each partition in the answer to a `produce_request`."""
    return {
        TopicPartition(topic, partition): code
        for topic, partitions in response.topics
        for partition, code, *_ in partitions
    }


def fetch_request(offsets: Mapping[TopicPartition, int], isolation: int, partition_bytes: int) -> Any:
    """A request for records from these offsets on; the first batch comes whole, however large it is (KIP-74)."""
    wanted = {where: (offset, partition_bytes) for where, offset in offsets.items()}
    return FetchRequest(_FETCH_WAIT_MS, 1, _FETCH_MAX_BYTES, isolation, _by_topic(wanted))


def read_fetch(answer: memoryview, version: int) -> list[Fetched]:
    """The partitions in the answer to a `fetch_request`, whose ``data`` are parts of ``answer``."""
    at = 10 if version >= 7 else 4  # throttle time, and the error and id of a session, which there is not
    (topics,) = _INT32.unpack_from(answer, at)
    at += 4
    found: list[Fetched] = []
    for _ in range(topics):
        (size,) = _INT16.unpack_from(answer, at)
        topic = str(answer[at + 2 : at + 2 + size], "utf-8")
        (partitions,) = _INT32.unpack_from(answer, at + 2 + size)
        at += 6 + size
        for _ in range(partitions):
            partition, code, end, stable = _FETCHED.unpack_from(answer, at)
            at += _FETCHED.size + (8 if version >= 5 else 0)  # the log's start
            (count,) = _INT32.unpack_from(answer, at)
            at += 4
            aborted = [_ABORTED.unpack_from(answer, at + number * _ABORTED.size) for number in range(max(0, count))]
            at += len(aborted) * _ABORTED.size + (4 if version >= 11 else 0)  # the preferred replica
            (size,) = _INT32.unpack_from(answer, at)
            at += 4
            data = answer[at : at + max(0, size)]
            at += len(data)
            found.append(Fetched(TopicPartition(topic, partition), code, end, stable, aborted, data))
    return found


def offsets_request(times: Mapping[TopicPartition, int], isolation: int) -> Any:
    """A request for the first offset at or behind a time, in milliseconds since 1970, or at `EARLIEST` or `LATEST`."""
    return OffsetRequest(-1, isolation, _by_topic({where: (at,) for where, at in times.items()}))


def read_offsets(response: Any) -> Iterator[tuple[TopicPartition, int, int]]:
    """Partition, error code and offset, -1 if there is none, in the answer to an `offsets_request`."""
    for topic, partitions in response.topics:
        for partition, code, *_, offset in partitions:
            yield TopicPartition(topic, partition), code, offset


def _by_topic(values: Mapping[TopicPartition, Any]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = {}
    for where, value in values.items():
        topics.setdefault(where.topic, []).append((where.partition, *value))
    return list(topics.items())
