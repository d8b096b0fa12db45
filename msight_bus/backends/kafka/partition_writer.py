"""Records of one partition, batched in order, with the sequence numbers that make publishing idempotent.

While a batch is on its way the next one fills, so batches grow with the rate and nothing waits on a timer. A partition has one
batch in flight: a batch that certainly was not appended leaves its sequence numbers to the next one, and a batch whose outcome
is unknown costs this partition, and no other, its producer id.
"""

from __future__ import annotations

import asyncio
from binascii import hexlify
from collections import deque
from collections.abc import Generator, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition

from msight_bus.backends.kafka.aiokafka_compat import RecordHeader
from msight_bus.backends.kafka.errors import InvalidRecordError, translate
from msight_bus.errors import BusError, ConnectionLostError, PublishTimeoutError
from msight_bus.protocol.envelope import HEADER, TopicCounter, pack_meta

if TYPE_CHECKING:
    from msight_bus.backends.kafka.producer import KafkaProducer

_QUEUED_BATCHES = 2
"""Full batches that may wait before their publisher waits too."""

_TURN_BYTES = 128 * 1024
"""After so many bytes a publisher that never had to wait gives the loop a turn."""

_RETRY_AFTER = 0.1
"""Seconds until a batch is sent again."""

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
"""A batch whose first attempt ends with one of these is not in the log."""


class ProducerId(NamedTuple):
    """What the broker recognizes an idempotent producer by (KIP-98)."""

    id: int
    epoch: int


class _Acknowledgement(asyncio.Future[None]):
    """The acknowledgement of a batch. All its publishers share it, so that none can cancel it for the others."""

    def __await__(self) -> Generator[Any, None, None]:
        return super().__await__() if self.done() else asyncio.shield(self).__await__()

    def cancel(self, msg: object = None) -> bool:
        """Do nothing, and return false."""
        return False


class _Batch:
    """Records that are sent together.

    Attributes:
        done: their acknowledgement.
        attempts: how often the batch was written to a connection.
        data: the encoded batch, from the first attempt on.
    """

    __slots__ = ("append", "attempts", "begun", "builder", "count", "data", "done")

    def __init__(self, builder: Any) -> None:
        loop = asyncio.get_running_loop()
        self.builder = builder
        self.append = builder.append
        self.count = 0
        self.attempts = 0
        self.data: bytes | None = None
        self.begun = loop.time()
        self.done = _Acknowledgement(loop=loop)


class PartitionWriter:
    """The batches of one partition.

    Attributes:
        unfinished: acknowledgements that are still to come.
        congested: whether a publisher must wait for `room`.
        used_at: when the last batch was begun, by the loop's clock.
        producer_id: that of its batches; ``None`` until the next one needs one.
        sequence: the sequence number of the next batch's first record.
        spent: the producer id that an unknown outcome has cost.
    """

    def __init__(self, where: TopicPartition, owner: KafkaProducer, counter: TopicCounter, linger: float) -> None:
        """``linger`` are seconds that a record waits for others."""
        self.where = where
        self._owner = owner
        self._counter = counter
        self._linger = linger
        self._filling: _Batch | None = None
        self._full: deque[_Batch] = deque()
        self._sending: _Batch | None = None
        self._is_awake = False  # whether the owner sends, or has been asked to
        self._lingering: asyncio.TimerHandle | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._turn_bytes = 0
        self.sequence = 0
        self.producer_id: ProducerId | None = None
        self.spent: ProducerId | None = None
        self.unfinished: set[asyncio.Future[None]] = set()
        self.congested = False
        self.used_at = 0.0

    def append(self, key: bytes | None, value: bytes | None, user: Sequence[RecordHeader] = ()) -> asyncio.Future[None]:
        """Stamp a record and add it to the batch that is being filled; returns the batch's acknowledgement.

        ``user`` are the publisher's own headers.
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
        return batch.done

    def _next(self) -> _Batch:
        self._filling = batch = _Batch(self._owner.new_builder(self.where.topic))
        self.used_at = batch.begun
        self.unfinished.add(batch.done)
        batch.done.add_done_callback(self._finished)
        return batch

    def _finished(self, done: asyncio.Future[None]) -> None:
        self.unfinished.discard(done)
        if not done.cancelled():
            done.exception()  # known to whoever published; nobody waiting is no error

    def _give_room(self) -> None:
        if len(self._full) < _QUEUED_BATCHES:
            self.congested = False
            self._room.set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or on its way."""
        return not self.unfinished and not self._is_awake

    async def room(self) -> None:
        """Wait until the writer accepts more."""
        while self.congested:
            await self._room.wait()

    # -- sending

    def take(self) -> bool:
        """Take the batch to send next; returns whether there is one now. A writer without one asks again by `wake`."""
        if self._sending is None and self._full:
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
        """The batch to send, which counts as an attempt; ``None`` if it cannot be encoded, which is its outcome."""
        batch, producer = self._sending, self.producer_id
        assert batch is not None
        assert producer is not None
        try:
            if batch.data is None:
                batch.builder.set_producer_state(*producer, self.sequence)
                batch.data = batch.builder.build()
        except Exception as error:  # a codec's
            self._end(error)
            return None
        batch.attempts += 1
        return batch.data

    def answered(self, error: kafka_errors.KafkaError | None) -> None:
        """Take the broker's answer."""
        batch = self._sending
        if batch is None:  # the bus has closed
            return
        if error is None or isinstance(error, kafka_errors.DuplicateSequenceNumber):
            self.sequence = (self.sequence + batch.count) & _MAX_SEQUENCE
            self._end(None)
        elif error.retriable:
            self.retry(error)
        else:
            self._refuse(error)

    def retry(self, error: BaseException | None = None) -> None:
        """Send the batch again, with the same sequence numbers: the broker recognizes what it has.

        Args:
            error: why the last attempt failed; ``None`` if there was none.
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
                if missing or not _is_passing(problem):
                    self._refuse(problem)
                    return
                error = problem
            else:
                self._owner.wake(self)
                return

    def _refuse(self, error: BaseException) -> None:
        batch = self._sending
        if batch is not None and batch.attempts and not (batch.attempts == 1 and isinstance(error, _NOT_APPENDED)):
            self.spent, self.producer_id = self.producer_id, None
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Report the outcome of the batch that was sent, and go on with the next one."""
        batch, self._sending = self._sending, None
        if batch is None:  # the bus has closed
            return
        self._owner.wake(self)
        if isinstance(error, kafka_errors.MessageSizeTooLargeError):
            self._owner.too_large(self.where.topic)
        if batch.done.done():
            return
        if error is None:
            batch.done.set_result(None)
            return
        problem = translate(error, "publish", f"on {self.where.topic!r}")
        if problem is not error:
            problem.__cause__ = error
        batch.done.set_exception(problem)

    def give_up(self, error: BusError) -> asyncio.Task[None] | None:
        """End: every acknowledgement that is still to come raises ``error``. Returns a task that ends soon."""
        self._sending = self._filling = None
        self._full.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        for done in list(self.unfinished):
            if not done.done():
                done.set_exception(error)
        if self._retrying is not None:
            self._retrying.cancel()
        return self._retrying


def _is_passing(error: Exception) -> bool:
    """Whether another attempt can succeed."""
    if isinstance(error, kafka_errors.KafkaError):
        return bool(error.retriable)
    # a PublishTimeoutError, which is an OSError too, is the outcome: the partition is gone
    return isinstance(error, ConnectionLostError | OSError) and not isinstance(error, PublishTimeoutError)
