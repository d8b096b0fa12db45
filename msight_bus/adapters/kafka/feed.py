"""One subscription's stream from Kafka: fetching, acknowledgements, commits. How partitions come and go is in `group.py`
and `live_view.py`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    GroupAuthorizationFailedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from msight_bus.adapters.base import Sink, SubscribeRequest
from msight_bus.adapters.kafka.client import end_consumer, explain, is_member
from msight_bus.errors import BusError
from msight_bus.message import NO_HEADERS, Message
from msight_bus.offsets import PartitionLedger
from msight_bus.settings import BusSettings
from msight_bus.wire import envelope

logger = logging.getLogger("msight_bus")

_FETCH_MESSAGES = 2000
_COMMIT_WITHIN = 3.0
_LEAVE_WITHIN = 1.0

DeadLetter = Callable[[Message], Awaitable[None]]


class Assignment:
    """The partitions that a subscription owns between two rebalances, and what of them is done (message.Settlement)."""

    def __init__(self, starts: Mapping[int, int], sink: Sink, max_redeliveries: int, dead_letter: DeadLetter) -> None:
        self.ledgers = {partition: PartitionLedger(offset) for partition, offset in starts.items()}
        self.owned = True
        self._sink = sink
        self._max_redeliveries = max_redeliveries
        self._dead_letter = dead_letter

    def settle(self, message: Message) -> None:
        """Mark a record as done; late ones, of partitions that were taken away, are ignored."""
        if self.owned and message.position is not None and not message._settled:
            message._settled = True
            self.ledgers[message.position[0]].settle(message.position[1])

    async def release(self, message: Message) -> None:
        """Deliver a record again, or dead-letter it when it has come back too often."""
        if not self.owned or message._settled:
            return
        if message.redeliveries < self._max_redeliveries:
            message.redeliveries += 1
            self._sink.put_back(message)
            return
        await self._dead_letter(message)
        self.settle(message)


class KafkaFeed:
    """Fetches a topic's records into a subscription (adapters.base.Feed)."""

    def __init__(
        self,
        request: SubscribeRequest,
        sink: Sink,
        settings: BusSettings,
        consumer: AIOKafkaConsumer,
        dead_letter: DeadLetter,
    ) -> None:
        self.topic = request.topic
        self._request = request
        self._sink = sink
        self._settings = settings
        self._consumer = consumer
        self._dead_letter = dead_letter
        self._blocks = request.queue.when_full == "block"
        self._assignment = self._new_assignment({})
        self._resolved = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False
        self._problem = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.on_closed: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Begin to deliver; returns when the positions of all that is published from now on are certain."""
        raise NotImplementedError

    def _new_assignment(self, starts: Mapping[int, int]) -> Assignment:
        return Assignment(starts, self._sink, self._settings.kafka.max_redeliveries, self._dead_letter)

    def _run(self, coroutine: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine, name=f"msight_bus {name} {self.topic}")
        self._tasks.append(task)
        return task

    # -- fetching

    async def _pump(self) -> None:
        while True:
            await self._resolved.wait()
            await self._room.wait()
            limit = max(1, min(_FETCH_MESSAGES, self._sink.room)) if self._blocks else _FETCH_MESSAGES
            try:
                fetched = await self._consumer.getmany(timeout_ms=1000, max_records=limit)
            except NoOffsetForPartitionError:
                await asyncio.sleep(0.01)  # a partition that came after the last assignment was resolved
            except OffsetOutOfRangeError as error:
                await self._skip_deleted(error)
            except (TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
                self._sink.fail(explain(error))
                return
            except ConsumerStoppedError:
                return
            except (KafkaError, OSError) as error:
                self._complain(error)
                await asyncio.sleep(self._settings.limits.reconnect_min)
                self._rewind()
            else:
                # Nothing is awaited between the fetch and the queue, so no rebalance can come in between.
                self._deliver(fetched)

    def _deliver(self, fetched: Mapping[TopicPartition, list[Any]]) -> None:
        assignment = self._assignment
        received_at = time.time()
        for partition, fetched_records in fetched.items():
            records = fetched_records
            ledger = assignment.ledgers.get(partition.partition)
            if ledger is None or not assignment.owned:
                continue
            if not ledger.deliver_all([record.offset for record in records]):
                records = [record for record in records if ledger.deliver(record.offset)]
            batch = [to_message(self.topic, partition.partition, record, received_at, assignment) for record in records]
            self._problem = ""
            self._sink.deliver(batch)

    def _complain(self, error: BaseException) -> None:
        text = str(explain(error))
        if text != self._problem:
            self._problem = text
            logger.warning("Fetching %s: %s", self.topic, text)

    def _rewind(self) -> None:
        """Fetch again from where delivery ended: an exception for one partition loses what others had brought."""
        for partition, ledger in self._assignment.ledgers.items():
            self._consumer.seek(TopicPartition(self.topic, partition), ledger.expected)

    async def _skip_deleted(self, error: OffsetOutOfRangeError) -> None:
        """Retention has deleted what comes next: say how much, and go on with the oldest that is left."""
        for where in error.args[0]:
            ledger = self._assignment.ledgers.get(where.partition)
            if ledger is None:
                continue
            oldest = (await self._consumer.beginning_offsets([where]))[where]
            if oldest > ledger.expected:
                self._sink.announce_gap(oldest - ledger.expected, "retention")
                ledger.expected = oldest
            else:  # the log was truncated or the topic made anew: what is missing cannot be known
                newest = (await self._consumer.end_offsets([where]))[where]
                if newest < ledger.expected:
                    self._sink.announce_gap(None, "retention")
                    self._assignment.ledgers[where.partition] = PartitionLedger(oldest)
        self._rewind()

    # -- flow control and the end (adapters.base.Feed)

    def pause(self) -> None:
        """Fetch no more; the log waits."""
        self._room.clear()

    def resume(self) -> None:
        """Fetch again."""
        self._room.set()

    async def stop(self) -> None:
        """End the fetching; what was delivered can still be settled."""
        for task in self._tasks:
            if task.get_name().startswith("msight_bus pump"):
                task.cancel()
                await asyncio.wait((task,))

    async def commit(self) -> None:
        """Nothing is committed outside a group."""

    async def close(self) -> None:
        """Stop, commit, leave the group."""
        await self.stop()
        try:
            await self.commit()
        except BusError as error:
            logger.warning("Not committed on leaving %s, so it is delivered again: %s", self.topic, error)
        finally:
            self.on_closed()
            await self._end(_LEAVE_WITHIN)

    async def give_up(self, error: BusError) -> None:
        """End at once, because Kafka will answer no more; what was not committed comes again, to somebody."""
        self._sink.fail(error)
        await self._end(leave_within=0)

    async def _end(self, leave_within: float) -> None:
        self._assignment.owned = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if not self._ended:
            self._ended = True
            await end_consumer(self._consumer, leave_within=leave_within)

    async def _commit_finished(self) -> None:
        """Commit the finished prefixes, forwards only, within a deadline.

        Raises:
            BusError: not committed; the records come again.
        """
        assignment = self._assignment
        if not assignment.owned or not is_member(self._consumer):
            return
        finished = {partition: ledger.finished for partition, ledger in assignment.ledgers.items()}
        offsets = {
            TopicPartition(self.topic, partition): OffsetAndMetadata(offset, "")
            for partition, offset in finished.items()
            if offset > (assignment.ledgers[partition].committed or 0)
        }
        if not offsets:
            return
        try:
            async with asyncio.timeout(_COMMIT_WITHIN):
                await self._consumer.commit(offsets)
        except TimeoutError as error:
            raise BusError(f"Kafka did not confirm a commit of {self.topic!r} within {_COMMIT_WITHIN:g} s.") from error
        except (KafkaError, ValueError) as error:
            raise explain(error) from error
        for partition, offset in finished.items():
            assignment.ledgers[partition].committed = offset


def to_message(topic: str, partition: int, record: Any, received_at: float, assignment: Assignment) -> Message:
    """The message of a record; the bus's metadata is taken out of the headers."""
    record_headers = record.headers
    position = (partition, record.offset)
    if len(record_headers) == 1 and record_headers[0][0] == envelope.HEADER:  # what the bus itself publishes, mostly
        meta = envelope.parse_header(record_headers[0][1] or b"")
        if meta is not None and record.key is None and record.value is not None:
            return Message(topic, record.value, NO_HEADERS, None, *meta, received_at, position, 0, assignment)
    headers: Mapping[str, str] = NO_HEADERS
    session = sequence = published_at = None
    if record_headers:
        user: dict[str, str] = {}
        for name, value in record_headers:
            if name == envelope.HEADER:
                meta = envelope.parse_header(value or b"")
                if meta is not None:
                    session, sequence, published_at = meta
            else:
                user[name] = (value or b"").decode("utf-8", "replace")
        if user:
            headers = user
    key = record.key.decode("utf-8", "replace") if record.key is not None else None
    return Message(
        topic,
        record.value or b"",
        headers,
        key,
        session,
        sequence,
        published_at,
        received_at,
        position,
        0,
        assignment,
    )
