"""One subscription's stream from Kafka: fetching, acknowledgements, commits. How partitions come and go is in `group.py`
and `live_view.py`."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from msight_bus.backends.base import Inbox, Selection
from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.kafka.consumer_compat import background_tasks, end_consumer, is_member, log_end, topic_identity
from msight_bus.backends.kafka.errors import REFUSED, translate
from msight_bus.backends.kafka.records import offset_of, to_messages
from msight_bus.backends.kafka.start import Moment
from msight_bus.backends.kafka.topic_id import TopicIdentity
from msight_bus.errors import BusError
from msight_bus.message import Message
from msight_bus.offset_tracker import PartitionLedger
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

_LIST = 2000
"""Messages that are made without letting others run."""

_CHECK_EVERY = 0.5
_HELD_BACK_AFTER = 10.0
"""Seconds after which a transaction that stays open is told of."""

_LOOK_EVERY = 5.0
"""Seconds after which the topic is asked for its identity and its partitions."""

_IDENTIFY_WITHIN = 3.0
"""Seconds for that; a member of a group waits for it in each rebalance."""

_LOOK_AGAIN = 0.1
"""Seconds until then where it seems to be missing."""

_GONE_AFTER = 2
"""Looks in succession that find no topic; one broker can be behind the others."""

_COMMIT_WITHIN = 3.0
_FETCHES_OF_DAMAGED = 3
_LEAVE_WITHIN = 1.0

DeadLetter = Callable[[Message], Awaitable[bool]]


class Partition:
    """A partition that a subscription owns between two rebalances, and what of it is done (message.Settlement)."""

    __slots__ = ("_dead_letter", "_inbox", "_max_redeliveries", "_moment", "ledger", "owned", "partition")

    def __init__(
        self,
        partition: int,
        start: int,
        inbox: Inbox,
        max_redeliveries: int,
        dead_letter: DeadLetter,
        *,
        moment: Moment | None,
    ) -> None:
        self.partition = partition
        self._moment = moment
        self.ledger = PartitionLedger(start)
        self.owned = True
        self._inbox = inbox
        self._max_redeliveries = max_redeliveries
        self._dead_letter = dead_letter

    def deliver(self, messages: list[Message]) -> list[Message]:
        """Note messages, in ascending order, as delivered; returns those that are new: a fetch begins with whole batches."""
        ledger = self.ledger
        if offset_of(messages[0]) < ledger.expected:
            messages = [message for message in messages if offset_of(message) >= ledger.expected]
        end = offset_of(messages[-1]) + 1 if messages else 0
        if (moment := self._moment) is not None:  # what it leaves out counts as done
            messages = [message for message in messages if not moment.leaves_out(message)]
        if messages and offset_of(messages[-1]) - offset_of(messages[0]) == len(messages) - 1:
            ledger.deliver(offset_of(messages[0]), offset_of(messages[-1]) + 1)
        else:  # with holes
            for offset in map(offset_of, messages):
                ledger.deliver(offset, offset + 1)
        if end:
            ledger.expected = max(ledger.expected, end)
        return messages

    def settle(self, message: Message) -> None:
        """Mark a record as done; late ones, of partitions that were taken away, are ignored."""
        if self.owned and not message._settled:
            message._settled = True
            assert message.offset is not None
            self.ledger.settle(message.offset)

    async def release(self, message: Message) -> None:
        """Deliver a record again, or dead-letter it when it has come back too often."""
        if not self.owned or message._settled:
            return
        if message.redeliveries < self._max_redeliveries:
            message.redeliveries += 1
            self._inbox.put_back(message)
            return
        if await self._dead_letter(message):
            self.settle(message)
        else:
            self._inbox.drop(message, "no dead letter")


class KafkaFeed:
    """Fetches a topic's records into a subscription (backends.base.Consumer)."""

    def __init__(
        self,
        selection: Selection,
        inbox: Inbox,
        settings: BusSettings,
        consumer: AIOKafkaConsumer,
        dead_letter: DeadLetter,
    ) -> None:
        self.topic = selection.topics[0]
        self._selection = selection
        self._inbox = inbox
        self._stream = inbox.stream(self.topic)
        self._settings = settings
        self._consumer = consumer
        self._dead_letter = dead_letter
        self._reads_committed = settings.kafka.isolation == "read_committed"
        self._blocks = selection.queue.when_full == "block"
        self._assignment: dict[int, Partition] = {}
        # a consumer of the latest n does not want what lies further back when a partition comes, or comes back
        self._latest = (
            selection.queue.max_messages if selection.queue.when_full == "latest" and selection.start == "latest" else 0
        )
        self._arriving: set[int] = set()
        self._identity: TopicIdentity | None = None
        self._missing = asyncio.Event()
        self._looks_missing = 0
        self._resolved = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False
        self._failure: BusError | None = None
        self._problem = ""
        self._held_back: dict[
            int, tuple[int, float]
        ] = {}  # the offset where each partition stands still, and when to say so
        self._damaged: dict[int, tuple[int, int]] = {}  # the last place of each partition, and how often it was fetched
        self._tasks: list[asyncio.Task[None]] = []
        self.on_closed: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Begin to deliver; returns when the positions of all that is published from now on are certain."""
        raise NotImplementedError

    def _partition(self, number: int, start: int, moment: Moment | None = None) -> Partition:
        limit = self._settings.kafka.max_redeliveries
        return Partition(number, start, self._inbox, limit, self._dead_letter, moment=moment)

    def _let_go(self) -> None:
        """Late acknowledgements change nothing from now on."""
        for partition in self._assignment.values():
            partition.owned = False

    def _run(self, coroutine: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine, name=f"msight_bus {name} {self.topic}")
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # nobody awaits it, and its subscription must not stand still in silence
            logger.error("Reading %s has failed.", self.topic, exc_info=error)
            self._fail(translate(error, "subscribe"))

    def _fail(self, error: BusError) -> None:
        """End the subscription with an error."""
        self._failure = self._failure or error
        self._inbox.fail(self._failure)

    def _watch_client(self) -> None:
        self._run(self._watch_tasks(background_tasks(self._consumer)), "watch")

    async def _watch_tasks(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Fail when one of aiokafka's own tasks has ended.

        Raises:
            BusError: one has.
        """
        while True:
            done, _ = await asyncio.wait(tasks, timeout=_CHECK_EVERY, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = None if task.cancelled() else task.exception()
                raise BusError(f"Kafka: the client stopped reading {self.topic!r}: {error!r}") from error
            self._check_client()
            self._check_transactions()

    def _check_transactions(self) -> None:
        """Say once of a partition that an open transaction holds back."""
        now = asyncio.get_running_loop().time()
        for number, partition in self._assignment.items():
            end, stable = log_end(self._consumer, TopicPartition(self.topic, number)) or (0, 0)
            if not stable <= partition.ledger.expected < end or not self._reads_committed:
                self._held_back.pop(number, None)
                continue
            offset, at = self._held_back.setdefault(number, (stable, now + _HELD_BACK_AFTER))
            if offset != stable:
                self._held_back[number] = (stable, now + _HELD_BACK_AFTER)
            elif now >= at:
                self._held_back[number] = (stable, math.inf)
                logger.warning(
                    "%s, partition %d: a transaction that is open for %g s holds back %d records behind offset %d. Commit or "
                    "abort it at its producer; MSIGHT_KAFKA_ISOLATION=read_uncommitted does not wait for it.",
                    self.topic,
                    number,
                    _HELD_BACK_AFTER,
                    end - stable,
                    stable,
                )

    def _check_client(self) -> None:
        """Take what aiokafka tells only to whoever fetches."""

    # -- the topic, which may be deleted and made anew

    async def _look_at_topic(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY):
                    await self._missing.wait()
                await asyncio.sleep(_LOOK_AGAIN)
            except TimeoutError:
                pass
            self._missing.clear()
            try:
                await self._look()
            except (KafkaError, OSError) as error:
                self._complain(error)

    async def _look(self) -> None:
        """See whether the topic was made anew, and begin at its beginning if it was.

        Raises:
            KafkaError: not known.
        """
        await self._identify()

    async def _identify(self) -> bool:
        """Learn the topic's identity; returns whether it is certainly another one than before."""
        try:
            found = await topic_identity(self._consumer, self.topic, _IDENTIFY_WITHIN)
        except NotImplementedError:  # the brokers have no ids
            return False
        except (KafkaError, OSError) as error:
            logger.debug("No broker tells the identity of topic %s: %s", self.topic, error)
            return False
        self._looks_missing = self._looks_missing + 1 if found is None else 0
        if found is None:
            if self._looks_missing == _GONE_AFTER:
                logger.warning("Topic %s was deleted: nothing is received until it is created again.", self.topic)
            return False
        before, self._identity = self._identity, found
        if before is None or before.id == found.id:
            return False
        logger.warning("Topic %s was deleted and made anew: it is read from its beginning.", self.topic)
        self._stream.gap(None, "retention")
        return True

    # -- fetching

    async def _pump(self) -> None:
        while self._failure is None:
            await self._resolved.wait()
            await self._room.wait()
            try:
                await self._fetch()
            except REFUSED as error:
                self._fail(translate(error, "subscribe"))
            except ConsumerStoppedError:
                return
            except (KafkaError, OSError) as error:
                self._complain(error)
                await asyncio.sleep(self._settings.limits.reconnect_min)
                self._rewind()

    async def _fetch(self) -> None:
        try:
            fetched = await self._consumer.getmany(timeout_ms=1000, max_records=1)
        except NoOffsetForPartitionError:
            await asyncio.sleep(0.01)  # a partition that came after the last assignment was resolved
        except OffsetOutOfRangeError as error:
            await self._skip_deleted(error)
        else:
            # Nothing is awaited between the fetch and the queue, so no rebalance can come in between.
            self._deliver(fetched)

    @property
    def limit(self) -> int:
        """Messages that the next list has at most (partition_reader.ListMaker)."""
        return max(1, min(_LIST, self._inbox.room)) if self._blocks else _LIST

    def make(self, partition: int, records: Iterator[Any], first: int | None) -> list[Message]:
        """The messages of one partition's next records (partition_reader.ListMaker)."""
        return to_messages(self.topic, records, time.time(), self._assignment.get(partition), first)

    def passed(self, partition: int, offset: int) -> None:
        """What was not handed out below ``offset`` is no message (partition_reader.ListMaker)."""
        owned = self._assignment.get(partition)
        if owned is not None and owned.owned:
            owned.ledger.expected = max(owned.ledger.expected, offset)

    def unreadable(self, partition: int, count: int, reason: str, *, at_most: bool) -> None:
        """Say that records are passed over: they must not stop their partition (partition_reader.ListMaker)."""
        logger.warning("%d records of %s, partition %d, are passed over: %s", count, self.topic, partition, reason)
        self._stream.gap(count, "unreadable", at_most=at_most)

    def fetch_failed(self) -> None:
        """Partitions come back when a fetch succeeds again (partition_reader.ListMaker)."""
        self._arriving.update(self._assignment)

    def topic_missing(self) -> None:
        """Look soon whether the topic is still the same (partition_reader.ListMaker)."""
        self._missing.set()

    def fetch_again(self, partition: int, offset: int) -> bool:
        """Whether damaged bytes are worth another fetch (partition_reader.ListMaker)."""
        where, fetches = self._damaged.get(partition, (offset, 0))
        fetches = fetches + 1 if where == offset else 1
        self._damaged[partition] = (offset, fetches)
        return fetches < _FETCHES_OF_DAMAGED

    def _deliver(self, fetched: Mapping[TopicPartition, list[list[Message]]]) -> None:
        for where, lists in fetched.items():
            partition = self._assignment.get(where.partition)
            if partition is not None and partition.owned:
                self._problem = ""
                for messages in lists:
                    if self._latest and where.partition in self._arriving:
                        messages = self._skip(where, partition, messages)  # noqa: PLW2901
                    if messages and (new := partition.deliver(messages)):
                        self._stream.deliver(new)

    def _skip(self, where: TopicPartition, partition: Partition, messages: list[Message]) -> list[Message]:
        """Go on ``latest(n)`` records before the end of a partition that comes, or comes back, with more."""
        self._arriving.discard(where.partition)
        end, stable = log_end(self._consumer, where) or (0, 0)
        first = (stable if self._reads_committed else end) - self._latest
        ledger = partition.ledger
        if first <= ledger.expected:
            return messages
        self._inbox.skip(first - ledger.expected)
        ledger.skip_to(first)
        if offset_of(messages[-1]) < first:
            self._consumer.seek(where, first)
        return [message for message in messages if offset_of(message) >= first]

    def _complain(self, error: BaseException) -> None:
        text = str(translate(error, "subscribe"))
        if text != self._problem:
            self._problem = text
            logger.warning("Fetching %s: %s", self.topic, text)

    def _rewind(self) -> None:
        """Fetch again from where delivery ended: an exception for one partition loses what others had brought."""
        for number, partition in self._assignment.items():
            if partition.owned:  # a rebalance seeks itself
                self._consumer.seek(TopicPartition(self.topic, number), partition.ledger.expected)

    async def _skip_deleted(self, error: OffsetOutOfRangeError) -> None:
        """Retention has deleted what comes next: say how much, and go on with the oldest that is left."""
        for where in error.args[0]:
            partition = self._assignment.get(where.partition)
            if partition is None:
                continue
            ledger = partition.ledger
            oldest = (await self._consumer.beginning_offsets([where]))[where]
            if not partition.owned:
                continue
            if oldest > ledger.expected:
                self._stream.gap(oldest - ledger.expected, "retention", at_most=True)
                ledger.expected = oldest
            else:  # the log was truncated or the topic made anew: what is missing cannot be known
                newest = (await self._consumer.end_offsets([where]))[where]
                if newest < ledger.expected:
                    self._stream.gap(None, "retention")
                    partition.ledger = PartitionLedger(oldest)
        self._rewind()

    # -- flow control and the end (backends.base.Consumer)

    @property
    def lag(self) -> int | None:
        """Records from the positions to the ends of the partitions; ``None`` before each has been fetched from."""
        behind = 0
        for number, partition in self._assignment.items():
            known = log_end(self._consumer, TopicPartition(self.topic, number))
            if known is None:
                return None
            behind += max(0, known[0] - partition.ledger.expected)
        return behind

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
        self._fail(error)
        await self._end(leave_within=0)

    async def _end(self, leave_within: float) -> None:
        self._let_go()
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
        if not is_member(self._consumer):
            return
        ledgers = {number: partition.ledger for number, partition in self._assignment.items() if partition.owned}
        finished = {
            number: ledger.finished for number, ledger in ledgers.items() if ledger.finished > (ledger.committed or 0)
        }
        if not finished:
            return
        offsets = {TopicPartition(self.topic, number): OffsetAndMetadata(at, "") for number, at in finished.items()}
        try:
            async with loop_timeout(_COMMIT_WITHIN):
                await self._consumer.commit(offsets)
        except TimeoutError as error:
            raise BusError(f"Kafka did not confirm a commit of {self.topic!r} within {_COMMIT_WITHIN:g} s.") from error
        except (KafkaError, ValueError) as error:
            raise translate(error, "subscribe") from error
        for number, offset in finished.items():
            ledgers[number].committed = offset
