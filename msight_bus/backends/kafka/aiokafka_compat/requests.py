"""Produce, fetch and offset requests, and decoding of the responses."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v8

READ_UNCOMMITTED, READ_COMMITTED = 0, 1
LATEST, EARLIEST = -1, -2

FETCH_VERSIONS = range(4, 12)
"""The fetch versions that report aborted transactions and have the old header."""

_INT16, _INT32 = struct.Struct(">h"), struct.Struct(">i")
_PRODUCE = struct.Struct(">hhii")
_BATCH = struct.Struct(">ii")
_HEADER = struct.Struct(">hhih")
_FETCH_KEY = 1
_FETCH = struct.Struct(">iiiib")
_SESSION, _ERROR_AND_SESSION = struct.Struct(">ii"), struct.Struct(">hi")
_PARTITION_4 = struct.Struct(">iqi")
_PARTITION_5 = struct.Struct(">iqqi")
_PARTITION_9 = struct.Struct(">iiqqi")
_END_7 = bytes(4)  # topics to remove from the session
_END_11 = _END_7 + bytes(2)  # rack
_FETCHED_4 = struct.Struct(">ihqqi")
_FETCHED_5 = struct.Struct(">ihqqqi")
_ABORTED = struct.Struct(">qq")

_FETCH_WAIT_MS = 500
_FETCH_MAX_BYTES = 50 * 1024 * 1024


class Fetched(NamedTuple):
    """One partition of a fetch response.

    Attributes:
        where: topic and partition.
        code: error code; 0 without an error.
        end: high watermark, the offset after the last record.
        stable: last stable offset: that of the first record of an open transaction, ``end`` if none is open.
        aborted: producer id and first offset of each aborted transaction.
        data: record batches; the last one may be incomplete.
    """

    where: TopicPartition
    code: int
    end: int
    stable: int
    aborted: Sequence[tuple[int, int]]
    data: bytes | memoryview


class _ProduceRequest(ProduceRequest):
    """aiokafka's request, extended by version 8, whose response names the refused records (KIP-467). Copies a batch once."""

    def build(self, request_struct_class: Any) -> Any:
        request = super().build(request_struct_class)
        if request.API_VERSION >= 3:
            request.encode = self._encode  # aiokafka joins the batch once for each level of the request
        return request

    def _encode(self) -> bytes:
        parts = [_PRODUCE.pack(-1, self._required_acks, self._timeout, len(self._topics))]
        for topic, partitions in self._topics:
            name = topic.encode()
            parts += _INT16.pack(len(name)), name, _INT32.pack(len(partitions))
            for partition, batch in partitions:
                parts += _BATCH.pack(partition, len(batch)), batch
        return b"".join(parts)


_ProduceRequest._CLASSES = (*ProduceRequest._CLASSES, ProduceRequest_v8)


class Produced(NamedTuple):
    """One partition of a produce response.

    Attributes:
        code: error code; 0 without an error.
        refused: the numbers of the records that the broker named as refused, and why; empty before version 8.
        reason: why the batch, or the first of these records, was refused; empty if the broker gives no reason.
    """

    code: int
    refused: Mapping[int, str]
    reason: str


def produce_request(batches: Mapping[TopicPartition, bytes], timeout: float) -> Any:
    """Return a request that appends a batch to each partition, acknowledged by all in-sync replicas in ``timeout`` seconds."""
    topics = _by_topic({where: (data,) for where, data in batches.items()})
    return _ProduceRequest(None, -1, int(timeout * 1000), topics)


def read_produce(response: Any) -> Mapping[TopicPartition, Produced]:
    """Return the outcome of each partition from the response to a `produce_request`."""
    produced = {}
    for topic, partitions in response.topics:
        for partition, code, _, *rest in partitions:
            refused, reason = rest[-2:] if response.API_VERSION >= 8 else ((), "")
            named = {number: text or reason or topic for number, text in refused or ()}
            produced[TopicPartition(topic, partition)] = Produced(code, named, next(iter(named.values()), reason or ""))
    return produced


class FetchAnswer(list[Fetched]):
    """The partitions of a fetch response.

    Attributes:
        code: error code of the whole response; 0 without an error.
        session: id of the fetch session; 0 without a session.
    """

    __slots__ = ("code", "session")

    def __init__(self, code: int, session: int) -> None:
        super().__init__()
        self.code = code
        self.session = session


class FetchRequest:
    """A request for records of partitions with one leader. aiokafka's own request makes about 90 calls to encode its fields.

    Attributes:
        version: the version that was encoded.
        deadline: the loop's time until which a response must arrive.
    """

    __slots__ = ("_isolation", "_offsets", "_partition_bytes", "_session", "deadline", "version")

    def __init__(
        self,
        offsets: Mapping[TopicPartition, int],
        isolation: int,
        partition_bytes: int,
        session: tuple[int, int] = (0, -1),
    ) -> None:
        """
        Args:
            offsets: first offset of each partition. The first batch arrives complete, however large it is (KIP-74).
            isolation: `READ_COMMITTED` or `READ_UNCOMMITTED`.
            partition_bytes: maximum number of bytes of one partition.
            session: id and epoch of a fetch session (KIP-227); epoch 0 begins a session, epoch -1 uses none.
        """
        self._session = session
        self.version = 0
        self.deadline = 0.0
        self._offsets = offsets
        self._isolation = isolation
        self._partition_bytes = partition_bytes

    def encode(self, versions: Mapping[int, tuple[int, int]], number: int, client: bytes) -> bytes:
        """Return the request with its header, in the newest version of a broker.

        Args:
            versions: oldest and newest version of each request that the broker supports.
            number: correlation id.
            client: client id.

        Raises:
            IncompatibleBrokerVersion: the broker has none of `FETCH_VERSIONS`.
        """
        oldest, newest = versions.get(_FETCH_KEY, (0, -1))
        self.version = version = min(newest, FETCH_VERSIONS[-1])
        if version < max(oldest, FETCH_VERSIONS[0]):
            raise IncompatibleBrokerVersion(
                f"The broker supports Fetch requests of versions {oldest} to {newest}; one of {FETCH_VERSIONS[0]} to "
                f"{FETCH_VERSIONS[-1]} is required."
            )
        topics: dict[str, list[bytes]] = {}
        for (topic, partition), offset in self._offsets.items():
            if version >= 9:
                position = _PARTITION_9.pack(partition, -1, offset, -1, self._partition_bytes)
            elif version >= 5:
                position = _PARTITION_5.pack(partition, offset, -1, self._partition_bytes)
            else:
                position = _PARTITION_4.pack(partition, offset, self._partition_bytes)
            topics.setdefault(topic, []).append(position)
        parts = [
            _HEADER.pack(_FETCH_KEY, version, number, len(client)),
            client,
            _FETCH.pack(-1, _FETCH_WAIT_MS, 1, _FETCH_MAX_BYTES, self._isolation),
            _SESSION.pack(*self._session) if version >= 7 else b"",
            *_encode_topics(topics),
        ]
        parts.append(_END_11 if version >= 11 else _END_7 if version >= 7 else b"")
        return b"".join(parts)


def _encode_topics(topics: Mapping[str, list[bytes]]) -> Iterator[bytes]:
    yield _INT32.pack(len(topics))
    for topic, partitions in topics.items():
        name = topic.encode()
        yield _INT16.pack(len(name)) + name + _INT32.pack(len(partitions))
        yield from partitions


def read_fetch(answer: memoryview, version: int) -> FetchAnswer:
    """Decode the response to a `FetchRequest` of a ``version``; ``Fetched.data`` are slices of ``answer``.

    Raises:
        struct.error: the response is incomplete.
    """
    layout = _FETCHED_5 if version >= 5 else _FETCHED_4
    at = 4  # throttle time
    code, session = _ERROR_AND_SESSION.unpack_from(answer, at) if version >= 7 else (0, 0)
    at += _ERROR_AND_SESSION.size if version >= 7 else 0
    (topics,) = _INT32.unpack_from(answer, at)
    at += 4
    found = FetchAnswer(code, session)
    for _ in range(topics):
        (size,) = _INT16.unpack_from(answer, at)
        topic = str(answer[at + 2 : at + 2 + size], "utf-8")
        (partitions,) = _INT32.unpack_from(answer, at + 2 + size)
        at += 6 + size
        for _ in range(partitions):
            # from version 5 on, the log start offset is after the last stable offset
            partition, code, end, stable, *_, count = layout.unpack_from(answer, at)
            at += layout.size
            aborted: list[tuple[int, int]] = []
            if count > 0:
                aborted = [_ABORTED.unpack_from(answer, at + number * _ABORTED.size) for number in range(count)]
                at += count * _ABORTED.size
            at += 4 if version >= 11 else 0  # preferred read replica
            (size,) = _INT32.unpack_from(answer, at)
            at += 4
            data = answer[at : at + max(0, size)]
            at += len(data)
            found.append(Fetched(TopicPartition(topic, partition), code, end, stable, aborted, data))
    return found


def offsets_request(times: Mapping[TopicPartition, int], isolation: int) -> Any:
    """Return a request for the first offset at or after a time of each partition.

    Args:
        times: milliseconds since 1970, `EARLIEST` or `LATEST`.
        isolation: `READ_COMMITTED` or `READ_UNCOMMITTED`, which decides where `LATEST` is.
    """
    return OffsetRequest(-1, isolation, _by_topic({where: (at,) for where, at in times.items()}))


def read_offsets(response: Any) -> Iterator[tuple[TopicPartition, int, int]]:
    """Yield partition, error code and offset from the response to an `offsets_request`; offset -1 if no record matches."""
    for topic, partitions in response.topics:
        for partition, code, *_, offset in partitions:
            yield TopicPartition(topic, partition), code, offset


def _by_topic(values: Mapping[TopicPartition, Any]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = {}
    for where, value in values.items():
        topics.setdefault(where.topic, []).append((where.partition, *value))
    return list(topics.items())
