"""Batches the records of one partition, in order, with the sequence numbers that make publishing idempotent.

While one batch is in flight the next one fills, so batches grow with the publish rate and no timer delays them. A partition has
at most one batch in flight. A batch that was certainly not appended leaves its sequence numbers to the next one; after a batch
with an unknown outcome, this partition needs another producer id. So does a batch whose sequence numbers the broker does not
expect, because it has lost the end of its log or the producer id.

A batch that is refused for some of its records is sent again in parts, before later batches: without the records that the broker
named (KIP-467), or in halves if it named none.
"""

from __future__ import annotations

import asyncio
import logging
from binascii import hexlify
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition

from msight_bus.backends.kafka.aiokafka_compat import RecordHeader, read_batch
from msight_bus.backends.kafka.errors import InvalidRecordError, translate
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError
from msight_bus.protocol.envelope import HEADER, TopicCounter, pack_meta
from msight_bus.tasks import await_shared

if TYPE_CHECKING:
    from msight_bus.backends.kafka.producer import KafkaProducer

logger = logging.getLogger("msight_bus")

_QUEUED_BATCHES = 2
"""Number of full batches at which publishers wait."""

_TURN_BYTES = 128 * 1024
"""Bytes after which a publisher that never had to wait yields to the event loop."""

_RETRY_AFTER = 0.1
"""Seconds until a batch is sent again."""

_WARN_AT = 10
"""Attempts after which the reason is logged, once for each batch: an election of a leader takes fewer."""

_MAX_SPLITS = 64
"""Number of times that a batch and its parts are split. After them, a part is refused as a whole."""

_MAX_SEQUENCE = 2**31 - 1

_NOT_APPENDED = (
    InvalidRecordError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.CorruptRecordException,
    kafka_errors.InvalidRequestError,
    kafka_errors.InvalidRequiredAcksError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.PolicyViolationError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.UnsupportedVersionError,
)
"""Responses to a first attempt after which the batch is certainly not in the log."""

_NOT_EXPECTED = (
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.UnknownProducerId,
)
"""Responses after which a batch is sent again with another producer id, if no earlier attempt can have appended it."""

_REFUSED_RECORDS = (
    InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)
"""Errors of single records, or of a batch that is too large as a whole."""


class ProducerId(NamedTuple):
    """Identifies an idempotent producer to the broker (KIP-98)."""

    id: int
    epoch: int


class _Acknowledgement(asyncio.Future[None]):
    """The acknowledgement of records of a batch. Their publishers share the future, so cancelling one does not cancel it.

    Attributes:
        parts: number of unanswered parts of a split batch that contain records of this acknowledgement.
        accepted: whether a part was accepted.
        error: the error of a refused record; ``None`` if no record was refused.
    """

    parts = 0
    accepted = False
    error: BusError | None = None

    def __await__(self) -> Generator[Any, None, None]:
        return super().__await__() if self.done() else await_shared(self).__await__()

    def cancel(self, msg: object = None) -> bool:
        """Ignore the cancellation and return false."""
        return False

    def fail(self, error: BusError) -> None:
        """Raise ``error`` in the publishers that wait. Without a waiting publisher, asyncio does not log the error."""
        if not self.done():
            self.set_exception(error)
            self.exception()


class _Batch:
    """Records that are sent together.

    Attributes:
        keyed: shared acknowledgement of records with a key; ``None`` if no record shares it.
        unkeyed: shared acknowledgement of records without a key; ``None`` if no record shares it.
        own: acknowledgements of records that share none of these, by the record's number.
        attempts: number of times that the batch was written to a connection.
        data: the encoded batch; ``None`` before the first attempt.
        begun: when the batch was created, by the loop's clock.
        count: number of records.
        is_part: whether the batch is a part of a refused one.
    """

    __slots__ = ("append", "attempts", "begun", "builder", "count", "data", "is_part", "keyed", "own", "unkeyed")

    def __init__(self, builder: Any, attempts: int = 0, *, is_part: bool = False) -> None:
        self.builder = builder
        self.append = builder.append
        self.keyed: _Acknowledgement | None = None
        self.unkeyed: _Acknowledgement | None = None
        self.own: dict[int, _Acknowledgement] = {}
        self.count = 0
        self.attempts = attempts
        self.data: bytes | None = None
        self.begun = asyncio.get_running_loop().time()
        self.is_part = is_part

    def begin_acknowledgement(self, key: bytes | None, *, shared: bool) -> _Acknowledgement:
        """Return a new acknowledgement of the next record, which has ``key``; later records may share it."""
        done = _Acknowledgement()
        if not shared:
            self.own[self.count] = done
        elif key is None:
            self.unkeyed = done
        else:
            self.keyed = done
        return done

    def acknowledgement_of(self, number: int, key: bytes | None) -> _Acknowledgement:
        """Return the acknowledgement of a record, which has ``key``."""
        done = self.own.get(number) or (self.unkeyed if key is None else self.keyed)
        assert done is not None
        return done

    def acknowledgements(self) -> list[_Acknowledgement]:
        """Return the acknowledgements of all records, each once."""
        shared = [done for done in (self.keyed, self.unkeyed) if done is not None]
        return [*shared, *dict.fromkeys(self.own.values())]


class PartitionWriter:
    """The batches of one partition.

    Attributes:
        where: topic and partition.
        congested: whether a publisher must wait for `room`.
        used_at: when the last batch was created, by the loop's clock.
        producer_id: producer id of the batches; ``None`` until the next batch is sent.
        sequence: sequence number of the first record of the next batch.
        spent: producer id that must not be used again, because the outcome of a batch is unknown.
    """

    def __init__(self, where: TopicPartition, owner: KafkaProducer, counter: TopicCounter, linger: float) -> None:
        """
        Args:
            where: topic and partition.
            owner: the producer, which sends the batches.
            counter: session and last sequence of the topic.
            linger: seconds that a batch waits for further records.
        """
        self.where = where
        self._owner = owner
        self._counter = counter
        self._linger = linger
        self._filling: _Batch | None = None
        self._full: deque[_Batch] = deque()
        self._parts: deque[_Batch] = deque()  # of a refused batch
        self._splits_left = _MAX_SPLITS
        self._shares = True  # whether records share acknowledgements
        self._sending: _Batch | None = None
        self._is_awake = False  # whether the owner is sending or will send
        self._lingering: asyncio.TimerHandle | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._turn_bytes = 0
        self.sequence = 0
        self.producer_id: ProducerId | None = None
        self.spent: ProducerId | None = None
        self.congested = False
        self.used_at = 0.0

    def append(
        self, key: bytes | None, value: bytes | None, user: Sequence[RecordHeader] = (), *, alone: bool = False
    ) -> asyncio.Future[None]:
        """Add a record, with the bus's header, to the current batch and return its acknowledgement.

        The records of a batch with a key share an acknowledgement, and those without a key share another, because a compacted
        topic refuses records without a key. If the broker refuses only some of the records that share an acknowledgement, the
        acknowledgement raises the error for all of them, and later records have acknowledgements of their own.

        Args:
            key: the record's key.
            value: the record's value.
            user: the publisher's headers.
            alone: whether the record has an acknowledgement of its own.
        """
        now = time_ns()
        counter = self._counter
        counter.sequence = sequence = counter.sequence + 1
        headers = [(HEADER, hexlify(pack_meta(counter.session, sequence, now))), *user]
        batch = self._filling or self._next()
        if batch.append(batch.count, now // 1_000_000, key, value, headers) is None:
            self._full.append(batch)
            batch = self._next()
            batch.append(0, now // 1_000_000, key, value, headers)
            if len(self._full) >= _QUEUED_BATCHES:
                self.congested = True
                self._room.clear()
            if self._lingering is not None:
                self._end_lingering()
        done = batch.unkeyed if key is None else batch.keyed
        if done is None or alone:
            done = batch.begin_acknowledgement(key, shared=self._shares and not alone)
        batch.count += 1
        self._turn_bytes += (0 if value is None else len(value)) + 64
        if self._turn_bytes > _TURN_BYTES and not self.congested:
            self._turn_bytes = 0
            self.congested = True
            self._room.clear()
            asyncio.get_running_loop().call_soon(self._give_room)
        if not self._is_awake:
            self._is_awake = True
            self._owner.wake(self)
        return done

    def _next(self) -> _Batch:
        self._filling = batch = _Batch(self._owner.new_builder(self.where.topic))
        self.used_at = batch.begun
        return batch

    def _give_room(self) -> None:
        if len(self._full) < _QUEUED_BATCHES:
            self.congested = False
            self._room.set()

    @property
    def is_idle(self) -> bool:
        """Whether no record is queued or in flight."""
        return not self._is_awake and not self.unfinished()

    def unfinished(self) -> list[_Acknowledgement]:
        """Return the acknowledgements of the records that are queued or in flight."""
        batches = (self._sending, *self._parts, *self._full, self._filling)
        return [done for batch in batches if batch is not None for done in batch.acknowledgements()]

    async def room(self) -> None:
        """Wait until the writer is not congested."""
        while self.congested:
            await self._room.wait()

    # -- sending

    def take(self) -> bool:
        """Choose the batch to send next and return whether there is one. A writer without a batch calls `KafkaProducer.wake`."""
        if self._sending is None and self._parts:
            self._sending = self._parts.popleft()
        elif self._sending is None and self._full:
            self._sending = self._full.popleft()
            self._give_room()
        elif self._sending is None and self._filling is not None and not self._lingers(self._filling):
            self._sending, self._filling = self._filling, None
            self._give_room()
        self._is_awake = self._sending is not None or self._lingering is not None
        return self._sending is not None

    def _lingers(self, batch: _Batch) -> bool:
        if not self._linger:
            return False
        loop = asyncio.get_running_loop()
        until = batch.begun + self._linger
        if loop.time() < until and self._lingering is None:
            self._lingering = loop.call_at(until, self._end_lingering)
        return loop.time() < until

    def _end_lingering(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._owner.wake(self)

    def encode(self) -> bytes | None:
        """Return the encoded batch to send and count an attempt; ``None`` if encoding failed, which fails the batch."""
        batch, producer = self._sending, self.producer_id
        assert batch is not None
        assert producer is not None
        try:
            if batch.data is None:
                batch.builder.set_producer_state(*producer, self.sequence)
                batch.data = batch.builder.build()
        except Exception as error:  # a compression codec can raise anything
            self._end(error)
            return None
        batch.attempts += 1
        return batch.data

    def answered(self, error: kafka_errors.KafkaError | None, refused: Mapping[int, str]) -> None:
        """Handle the broker's response to the batch.

        Args:
            error: ``None`` if the batch was appended.
            refused: the numbers of the records that the broker named as refused, and why.
        """
        batch = self._sending
        if batch is None:  # the bus has closed
            return
        if isinstance(error, kafka_errors.MessageSizeTooLargeError):
            self._owner.too_large(self.where.topic)
        if error is None or isinstance(error, kafka_errors.DuplicateSequenceNumber):
            self.sequence = (self.sequence + batch.count) & _MAX_SEQUENCE
            self._end(None)
        elif error.retriable:
            if batch.attempts == _WARN_AT:
                logger.warning(
                    "Publish refused %d times, retrying: topic %s, partition %d: %r", batch.attempts, *self.where, error
                )
            self.retry(error)
        elif not self._begin_anew(batch, error) and not self._split(batch, error, refused):
            self._refuse(error, is_unknown=batch.attempts > 1 or not isinstance(error, _NOT_APPENDED))

    def _begin_anew(self, batch: _Batch, error: kafka_errors.KafkaError) -> bool:
        """Send a batch again, once, with another producer id, because the broker does not expect its sequence numbers.

        After an earlier attempt, the batch is certainly not in the log if its sequence numbers are out of order: the broker would
        acknowledge a repetition.
        """
        is_first = batch.attempts == 1 or isinstance(error, kafka_errors.OutOfOrderSequenceNumber)
        if batch.is_part or not is_first or not isinstance(error, _NOT_EXPECTED):
            return False
        logger.warning(
            "Publishing on %s, partition %d, continues with another producer id: %r. A broker that was restarted may have lost "
            "the last messages that it acknowledged.",
            *self.where,
            error,
        )
        assert batch.data is not None
        self.spent, self.producer_id = self.producer_id, None
        self._sending = None
        records = enumerate(read_batch(batch.data))
        self._parts.append(
            self._part([(batch.acknowledgement_of(number, record[1]), record) for number, record in records], 0)
        )
        self._settle(batch)
        self._owner.wake(self)
        return True

    def _split(self, batch: _Batch, error: kafka_errors.KafkaError, refused: Mapping[int, str]) -> bool:
        """Send a refused batch again, without the refused records or in halves; return false if it cannot be split.

        The parts take the sequence numbers of the batch. If an earlier attempt appended the batch, although that was not
        acknowledged, the broker does not append the parts: their sequence numbers are out of order.
        """
        if not batch.is_part:
            self._splits_left = _MAX_SPLITS
        if not isinstance(error, _REFUSED_RECORDS) or batch.count == 1 or not self._splits_left:
            return False
        refused = {number: reason for number, reason in refused.items() if 0 <= number < batch.count}
        if len(refused) == batch.count:
            return False
        assert batch.data is not None
        self._splits_left -= 1
        self._sending = None
        records = [
            (batch.acknowledgement_of(number, record[1]), record)
            for number, record in enumerate(read_batch(batch.data))
        ]
        half = batch.count // 2
        parts = [records[:half], records[half:]]
        if refused:
            parts = [[record for number, record in enumerate(records) if number not in refused]]
        self._parts.extendleft([self._part(part, batch.attempts - 1) for part in reversed(parts)])
        for number, reason in refused.items():
            done, _ = records[number]
            done.error = done.error or self._translated(type(error)(reason))
        self._settle(batch)
        self._owner.wake(self)
        return True

    def _part(self, records: Iterable[tuple[_Acknowledgement, Any]], attempts: int) -> _Batch:
        part = _Batch(self._owner.new_builder(self.where.topic, _MAX_SEQUENCE), attempts, is_part=True)
        for done, (timestamp, key, value, headers) in records:
            part.append(part.count, timestamp, key, value, headers)
            part.own[part.count] = done
            part.count += 1
        for done in part.acknowledgements():
            done.parts += 1
        return part

    def retry(self, error: BaseException | None = None) -> None:
        """Send the batch again with the same sequence numbers, by which the broker detects a duplicate.

        Args:
            error: why the last attempt failed; ``None`` before the first attempt.
        """
        if self._sending is not None:
            name = f"msight_bus retry {self.where.topic}-{self.where.partition}"
            self._retrying = asyncio.create_task(self._retry(error), name=name)

    async def _retry(self, error: BaseException | None) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._owner.patience
        while True:
            if error is not None:
                await asyncio.sleep(_RETRY_AFTER)
            try:
                await self._owner.prepare(self, stale=getattr(error, "invalid_metadata", False))
            except Exception as problem:
                missing = not self._owner.is_located(self.where) and loop.time() > give_up_at
                if missing or not _is_temporary(problem):
                    self._refuse(problem, is_unknown=self._sending is not None and self._sending.attempts > 0)
                    return
                error = problem
            else:
                self._owner.wake(self)
                return

    def _refuse(self, error: BaseException, *, is_unknown: bool) -> None:
        """Fail the current batch; ``is_unknown``: whether the batch can be in the log."""
        if is_unknown:
            self.spent, self.producer_id = self.producer_id, None
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Set the outcome of the current batch and continue with the next one."""
        batch, self._sending = self._sending, None
        if batch is None:  # the bus has closed
            return
        self._owner.wake(self)
        problem = None if error is None else self._translated(error)
        for done in batch.acknowledgements():
            if problem is not None:
                done.error = done.error or problem
            elif batch.is_part:
                done.accepted = True
        self._settle(batch)

    def _settle(self, batch: _Batch) -> None:
        """Set the outcome of the acknowledgements that wait for no other part."""
        for done in batch.acknowledgements():
            if batch.is_part:
                done.parts -= 1
            if done.parts or done.done():
                continue
            if done.error is None:
                done.set_result(None)
            else:
                done.fail(done.error)
                self._shares = self._shares and not done.accepted

    def _translated(self, error: BaseException) -> BusError:
        problem = translate(error, "publish", f"on {self.where.topic!r}")
        if problem is not error:
            problem.__cause__ = error
        return problem

    def give_up(self, error: BusError) -> asyncio.Task[None] | None:
        """Stop: pending acknowledgements raise ``error``.

        Returns:
            The cancelled retry, for the caller to await, if there is one.
        """
        unfinished = self.unfinished()
        self._sending = self._filling = None
        self._parts.clear()
        self._full.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        for done in unfinished:
            done.fail(error)
        if self._retrying is not None:
            self._retrying.cancel()
        return self._retrying


def _is_temporary(error: Exception) -> bool:
    """Return whether another attempt can succeed."""
    if isinstance(error, kafka_errors.KafkaError):
        return bool(error.retriable)
    # PublishTimeoutError, also an OSError, is final: the partition was deleted
    return isinstance(error, ConnectionLostError | OSError) and not isinstance(error, PublishTimeoutError)
