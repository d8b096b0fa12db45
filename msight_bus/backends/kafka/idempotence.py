"""aiokafka's idempotent producer, kept usable after a batch fails.

aiokafka spends the sequence numbers of a refused batch and never takes another producer id, so the broker refuses what follows on
that partition as out of order. Here the sequence numbers of a batch that was certainly not appended are used again, and the
producer goes on. Where the outcome of a batch is unknown they cannot be: that partition needs another producer. Nothing that
happens to one partition touches a batch of another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch

from msight_bus.backends.kafka.client import end_producer, start_client
from msight_bus.backends.kafka.errors import InvalidRecordError
from msight_bus.errors import PublishTimeoutError

logger = logging.getLogger("msight_bus")

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
    # aiokafka retries these; a batch fails with them only if it waited too long for a leader
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.NotLeaderForPartitionError,
)
"""A batch whose first attempt ends with one of these is not in the log."""

_PRODUCER_ID_IS_DEAD = (
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.ProducerFenced,
)
"""The broker refuses every further batch with this producer id, on every partition."""


class _HandedOver(MessageBatch):
    """A batch that aiokafka has, until it has an outcome or is taken back."""

    def __init__(
        self,
        producer: IdempotentProducer,
        where: TopicPartition,
        builder: BatchBuilder,
        *,
        settle: Callable[[BaseException | None], None],
        take_back: Callable[[], None],
    ) -> None:
        super().__init__(where, builder, producer.batch_ttl, 0)
        self._producer = producer
        self._settle = settle
        self.take_back = take_back
        self.base_sequence = 0

    def set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self.base_sequence = base_sequence
        super().set_producer_state(producer_id, producer_epoch, base_sequence)

    def done(self, *outcome: Any, **more: Any) -> None:
        self.settle(None)
        super().done(*outcome, **more)

    def done_noack(self) -> None:
        self.settle(None)
        super().done_noack()

    def failure(self, exception: BaseException) -> None:
        # before aiokafka can take the partition's next batch, and give it a sequence number
        if self._producer.has(self):
            self._producer.failed(self, exception)
            self.settle(exception)
        super().failure(exception)
        self.future.exception()  # told to whoever published
        self._drain_waiter.exception()

    def settle(self, error: BaseException | None) -> None:
        """Report the outcome, once."""
        if self._producer.forget(self):
            self._settle(error)


class IdempotentProducer:
    """One producer id: its batches in flight, and the partitions on which it can no longer publish.

    Attributes:
        is_alive: whether aiokafka's sender runs.
        batch_ttl: seconds that a batch waits for a leader.
    """

    def __init__(
        self, producer: AIOKafkaProducer, on_broken: Callable[[IdempotentProducer, BaseException], None]
    ) -> None:
        self._producer = producer
        self._accumulator = producer._message_accumulator
        self.batch_ttl: float = self._accumulator._batch_ttl
        self._sender = producer._sender
        self._on_broken = on_broken
        self._batches: dict[_HandedOver, None] = {}
        self._unusable: set[TopicPartition] = set()
        self._is_broken = False
        self._is_unusable = False
        self._requests: set[asyncio.Task[Any]] = set()
        self._send_request = self._sender._send_produce_req
        self._sender._send_produce_req = self._request
        self._changed = asyncio.Event()
        self._replaced = asyncio.Event()
        self.is_alive = False

    async def start(self) -> None:
        """Connect and get a producer id.

        Raises:
            KafkaError: Kafka cannot be reached or refuses.
        """
        await start_client(self._producer)
        self.is_alive = True
        sender = self._sender.sender_task
        sender.remove_done_callback(self._sender._fail_all)  # it fails batches whose answer is on its way, then itself
        sender.add_done_callback(self._sender_ended)

    def new_builder(self, max_bytes: int) -> BatchBuilder:
        """An empty batch; it can be handed to any producer of the same options."""
        return BatchBuilder(max_bytes, self._accumulator._compression_type)

    def takes(self, where: TopicPartition) -> bool:
        """Whether batches of a partition can be handed to this producer."""
        return not self._is_unusable and where not in self._unusable

    async def find(self, where: TopicPartition) -> None:
        """Wait for an answer of the cluster that has the partition, or until this producer is replaced.

        Raises:
            UnknownTopicOrPartitionError: the answer does not have it.
            KafkaError: the topic may not be published on, or no answer came.
        """
        if where.partition in (self._producer.client.cluster.partitions_for_topic(where.topic) or ()):
            return
        asking = asyncio.ensure_future(self._ask(where))
        replaced = asyncio.ensure_future(self._replaced.wait())
        try:
            await asyncio.wait((asking, replaced), return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
        finally:
            asking.cancel()
            replaced.cancel()

    async def _ask(self, where: TopicPartition) -> None:
        client = self._producer.client
        client._topics.add(where.topic)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.batch_ttl
        answers = 0
        while answers < 2:  # the first one may be that to a question that was asked before
            answers += await client.force_metadata_update()
            if where.partition in (client.cluster.partitions_for_topic(where.topic) or ()):
                return
            if where.topic in client.cluster.unauthorized_topics:
                raise kafka_errors.TopicAuthorizationFailedError(where.topic)
            if loop.time() > give_up_at:
                raise kafka_errors.KafkaTimeoutError(f"no broker told where {where.topic!r} is")
            if not answers:
                await asyncio.sleep(self._sender._retry_backoff)
        raise kafka_errors.UnknownTopicOrPartitionError(f"{where.topic!r} has no partition {where.partition}")

    def hand_over(
        self,
        builder: BatchBuilder,
        where: TopicPartition,
        settle: Callable[[BaseException | None], None],
        take_back: Callable[[], None],
    ) -> None:
        """Send a closed batch behind those of its partition that were handed over before.

        Calls ``settle`` with its outcome, or ``take_back`` if it was never sent and another producer must send it.
        """
        assert self.takes(where)
        accumulator = self._accumulator
        batch = _HandedOver(self, where, builder, settle=settle, take_back=take_back)
        self._batches[batch] = None
        accumulator._batches[where].append(batch)
        if not accumulator._waiter_future.done():
            accumulator._waiter_future.set_result(None)

    def has(self, batch: _HandedOver) -> bool:
        """Whether the outcome of a batch is still to come."""
        return batch in self._batches

    def forget(self, batch: _HandedOver) -> bool:
        """A batch has its outcome or is taken back; returns whether that is news."""
        if batch not in self._batches:
            return False
        del self._batches[batch]
        self._changed.set()
        return True

    def failed(self, batch: _HandedOver, error: BaseException) -> None:
        """Use a batch's sequence numbers again, or give its partition up."""
        if batch.retry_count <= 1 and isinstance(error, _NOT_APPENDED):
            self._producer._txn_manager._sequence_numbers[batch.tp] = batch.base_sequence
            return
        self._unusable.add(batch.tp)
        self._take_back(batch.tp)
        if isinstance(error, _PRODUCER_ID_IS_DEAD):
            self._give_up_all()
        self._break(error)

    def _give_up_all(self) -> None:
        self._is_unusable = True
        for where in list(self._accumulator._batches):
            self._take_back(where)

    def _take_back(self, where: TopicPartition) -> None:
        """Return the batches of a partition that were never sent, the last one first."""
        waiting = self._accumulator._batches.get(where)
        while waiting and waiting[-1].retry_count == 0:
            batch = waiting.pop()
            if self.forget(batch):
                batch.take_back()
        if waiting is not None and not waiting:
            del self._accumulator._batches[where]

    def _break(self, error: BaseException) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._on_broken(self, error)

    async def _request(self, node: int, batches: dict[TopicPartition, _HandedOver]) -> None:
        """Send one request; an exception that aiokafka does not expect would end its sender, with every batch of every topic."""
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            await self._send_request(node, batches)
        except Exception as error:
            logger.warning("A request to Kafka failed unexpectedly, trying again: %r", error)
            await asyncio.sleep(self._sender._retry_backoff)
            for batch in batches.values():
                if not self.has(batch) or batch not in self._accumulator._pending_batches:
                    continue
                if batch.expired():
                    batch.failure(error)
                else:  # with the same sequence numbers: the broker recognizes what it has
                    self._accumulator.reenqueue(batch)
            self._sender._in_flight.discard(node)
            self._sender._muted_partitions.difference_update(batches)
        finally:
            self._requests.discard(task)

    def _sender_ended(self, task: asyncio.Task[None]) -> None:
        self.is_alive = False
        self._changed.set()
        if self._replaced.is_set() and self._is_unusable:
            return  # `end`
        error = None if task.cancelled() else task.exception()
        self._give_up_all()
        self._break(error or kafka_errors.KafkaError("aiokafka's sender ended."))

    def replaced(self) -> None:
        """Another producer takes the batches from now on."""
        self._replaced.set()

    async def settled(self, within: float) -> None:
        """Wait until every batch has an outcome, ``within`` seconds at most if aiokafka's sender has ended.

        A sender that runs retries until the broker answers, and the requests of one that has ended may still be answered.
        """
        while self._batches and self.is_alive:
            self._changed.clear()
            await self._changed.wait()
        try:
            async with asyncio.timeout(within):
                while self._batches:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def end(self) -> None:
        """End at once. Batches that were never sent are taken back, those without an answer have an unknown outcome."""
        self.replaced()
        self._give_up_all()
        await end_producer(self._producer, self._requests)
        for batch in list(self._batches):
            batch.settle(
                PublishTimeoutError(
                    "Kafka did not acknowledge a message before its producer ended; outcome unknown, a retry may duplicate."
                )
            )
