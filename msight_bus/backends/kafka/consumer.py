"""The consumer of one subscription. `group.py` and `manual_assignment.py` assign its partitions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError

from msight_bus.backends.base import Inbox, Selection
from msight_bus.backends.kafka.aiokafka_compat import (
    EARLIEST,
    LATEST,
    READ_COMMITTED,
    READ_UNCOMMITTED,
    Client,
)
from msight_bus.backends.kafka.errors import REFUSED, translate
from msight_bus.backends.kafka.fetch_failures import FetchFailures
from msight_bus.backends.kafka.fetcher import Fetcher
from msight_bus.backends.kafka.partition import DeadLetter, Partition
from msight_bus.backends.kafka.selected_topics import SelectedTopics
from msight_bus.backends.kafka.start_offsets import Moment, end_of_epoch, list_offsets, resolve
from msight_bus.errors import BusError, ClosedError
from msight_bus.message import Message
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

_CHECK_EVERY = 0.5
"""Seconds between two checks of aiokafka's tasks and of open transactions."""

_LOOK_EVERY = 5.0
"""Seconds between two checks of the identity and partitions of the topics."""

_MATCH_EVERY = 2.0
"""Seconds between two checks with a pattern, which also find new topics that match."""

_LOOK_AGAIN = 0.1
"""Seconds until the next check after a broker reported a topic as unknown."""

_LOOK_FOR = 0.5
"""Seconds between two checks, without a pattern, while a topic does not exist."""

_LEAVE_WITHIN = 1.0
"""Maximum seconds for leaving the group."""


class KafkaConsumer:
    """Fetches the records of the topics of a subscription (backends.base.Consumer, fetcher.FetchListener).

    Attributes:
        name: names the topics in logs and errors.
        topics: the topics.
        on_closed: called when the subscription is closed.
        left: returns the seconds that are left to wait for the broker, at most the given number.
        failures: logs failed fetches; shared by the subscriptions of a bus.
    """

    def __init__(
        self, selection: Selection, inbox: Inbox, settings: BusSettings, client: Client, dead_letter: DeadLetter
    ) -> None:
        self.name = selection.name
        self.topics = SelectedTopics(selection, client)
        self.client = client
        self._selection = selection
        self._inbox = inbox
        for topic in selection.topics:
            inbox.stream(topic)  # its deadline begins now
        self._settings = settings
        self._dead_letter = dead_letter
        self._reads_committed = settings.kafka.isolation == "read_committed"
        self._isolation = READ_COMMITTED if self._reads_committed else READ_UNCOMMITTED
        queue = selection.queue
        self._waits = queue.when_full == "block"
        self._latest = queue.max_messages if queue.when_full == "latest" and selection.start == "latest" else 0
        self._fetcher = Fetcher(
            client,
            self,
            self._isolation,
            settings.kafka.tuning.fetch_bytes,
            settings.limits.reconnect_min,
        )
        self._tracked: list[str] = []
        self._missing = asyncio.Event()
        self._failure: BusError | None = None
        self._failing = False
        self._tasks: list[asyncio.Task[None]] = []
        self.on_closed: Callable[[], None] = lambda: None
        self.left: Callable[[float], float] = lambda most: most
        self.failures = FetchFailures()

    async def start(self) -> None:
        """Start to deliver and return once the start offsets are fixed: records published afterwards are delivered.

        Raises:
            KafkaError, BusError: a topic cannot be read.
        """
        raise NotImplementedError

    async def _connect(self) -> None:
        """Connect and get the partitions of the topics.

        Raises:
            KafkaError: no broker reported the partitions within the request timeout.
        """
        await self.client.bootstrap()
        unknown: list[str] = list(self._selection.topics)
        try:
            async with asyncio.timeout(self.client.request_timeout):
                while True:
                    await self.topics.check()
                    names = self._track()
                    if await self.client.update_metadata():
                        unknown = [name for name in names if not self.client.partitions(name)]
                        if not unknown:
                            return
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError as error:
            raise KafkaTimeoutError(f"no broker reported the partitions of {', '.join(unknown[:3])}") from error

    def _track(self) -> list[str]:
        """Request the metadata of these topics only from now on; return their names."""
        names = self.topics.names
        if names != self._tracked:
            self._tracked = names
            self.client.set_topics(names)
        return names

    @property
    def partitions(self) -> dict[TopicPartition, Partition]:
        """The partitions that are assigned to this subscription."""
        return self._fetcher.partitions

    def _all_partitions(self) -> list[TopicPartition]:
        return [
            TopicPartition(name, partition)
            for name in self.topics.names
            for partition in sorted(self.client.partitions(name))
        ]

    def _partition(self, where: TopicPartition, start: int, moment: Moment | None = None) -> Partition:
        return Partition(
            where,
            start,
            self._inbox,
            self._settings.kafka.max_redeliveries,
            self._dead_letter,
            moment=moment,
            latest=self._latest,
            waits=self._waits,
            reads_committed=self._reads_committed,
        )

    async def _resolve(self, partitions: list[TopicPartition], start: Any) -> dict[TopicPartition, int]:
        """Return start offsets, without those of topics that match a pattern and were deleted in the meantime."""
        return await resolve(self.client, partitions, start, self._isolation, self._is_gone)

    def _is_gone(self, where: TopicPartition) -> bool:
        return not self.topics.is_given(where.topic) and not self.client.partitions(where.topic)

    # -- tasks

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=f"msight_bus {name} {self.name}")
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, REFUSED):
            self._fail(translate(error, "subscribe"))
        elif error is not None:  # no caller awaits the task: end the subscription with the error
            logger.error("Consuming %s failed.", self.name, exc_info=error)
            self._fail(translate(error, "subscribe"))

    def _fail(self, error: BusError) -> None:
        """End the subscription with an error; the first error counts."""
        self._failure = self._failure or error
        if isinstance(error, ClosedError):  # another member reads the partitions
            self._discard()
        self._inbox.fail(self._failure)

    def _discard(self) -> None:
        """Stop fetching from all partitions, and discard their queued records."""
        gone = set(self.partitions.values())
        self._fetcher.assign({})
        self._inbox.discard(lambda message: message._settlement in gone, "revoked")

    def _begin_fetching(self, *client_tasks: asyncio.Task[None]) -> asyncio.Task[None]:
        """Start fetching; the subscription fails when one of aiokafka's ``client_tasks`` ends."""
        self._run(self._watch(client_tasks), "watch")
        return self._run(self._fetcher.run(), "fetcher")

    async def _watch(self, client_tasks: tuple[asyncio.Task[None], ...]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            done, _ = await asyncio.wait(client_tasks, timeout=_CHECK_EVERY, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = None if task.cancelled() else task.exception()
                raise BusError(
                    f"Kafka: consuming {self.name!r} stopped because a task of aiokafka ended ({error!r}); subscribe again."
                ) from error
            self._check_client()
            for partition in self.partitions.values():
                partition.warn_if_blocked(clock())

    def _check_client(self) -> None:
        """Report the errors that aiokafka raises only in a fetch; does nothing without a group."""

    # -- topics that are created, deleted and created again

    async def _watch_topics(self) -> None:
        while True:
            every = _MATCH_EVERY if self._selection.patterns else _LOOK_FOR if self.topics.are_missing else _LOOK_EVERY
            try:
                async with asyncio.timeout(every):
                    await self._missing.wait()
                await asyncio.sleep(_LOOK_AGAIN)
            except TimeoutError:
                pass
            self._missing.clear()
            try:
                await self._check_topics()
            except REFUSED as error:
                if not self.leave_out(error):
                    raise  # fails the subscription
            except (KafkaError, OSError) as error:
                self.failed(error)

    async def _check_topics(self) -> None:
        """Check which topics exist; consume new ones, and those that were created again, from their start.

        Raises:
            KafkaError: no broker responded, or the user may not read a topic.
        """
        raise NotImplementedError

    async def _find_recreated(self) -> set[str]:
        """Check which topics exist, report a gap on each that was created again, and return these.

        Raises:
            KafkaError: the user may not describe a topic that is given by name.
        """
        recreated = await self.topics.check()
        for name in recreated:
            self._inbox.stream(name).gap(None, "retention")
        for where, partition in self.partitions.items():
            partition.exists = self.topics.exists(where.topic)
        return recreated

    def leave_out(self, error: KafkaError) -> bool:
        """Exclude the topics that the user may not read; return false if one is given by name, or if the error names none."""
        refused = error.args[0] if error.args and isinstance(error, TopicAuthorizationFailedError) else ()
        names = {refused} if isinstance(refused, str) else set(refused)
        if not names or any(map(self.topics.is_given, names)):
            return False
        for name in names:
            self.topics.leave_out(name, str(translate(error, "subscribe")))
        self._fetcher.assign({where: each for where, each in self.partitions.items() if where.topic not in names})
        self.topic_missing()
        return True

    # -- fetcher.FetchListener

    def fetched(self, messages: list[Message]) -> None:
        """Deliver new messages to the subscription."""
        self._failing = False
        self._inbox.stream(self._selection.topic_map.on_broker(messages[0].topic)).deliver(messages)

    def failed(self, error: Exception) -> None:
        """Log a retriable error: a WARNING at the first, DEBUG at the next ones until messages arrive."""
        reason = str(translate(error, "subscribe"))
        if self._failing:
            logger.debug("Fetch from %s failed; retrying: %s", self.name, reason)
        else:
            self.failures.add(self.name, reason)
        self._failing = True

    def topic_missing(self) -> None:
        """Check the identity of the topics soon."""
        self._missing.set()

    async def out_of_range(self, partition: Partition) -> None:
        """Continue at the oldest record, because the next offset was deleted by retention, and report a gap.

        Raises:
            KafkaError: the broker did not report its offsets.
        """
        where = partition.where
        oldest = (await list_offsets(self.client, [where], EARLIEST, self._isolation))[where]
        if not partition.owned or partition.deleted_before(oldest):
            return
        # The log was truncated or the topic created again.
        newest = (await list_offsets(self.client, [where], LATEST, self._isolation))[where]
        if not partition.owned or newest >= partition.ledger.expected or await self.truncated(partition):
            return
        if partition.owned:  # it can be revoked while the leader is asked
            self._restart(partition, oldest)

    async def truncated(self, partition: Partition) -> bool:
        """Continue where the log was truncated, if it was, and report a gap; return whether it was truncated.

        Another leader, or a leader that lost the end of its log, can have written other records below the position (KIP-320).

        Raises:
            KafkaError: the leader did not respond.
        """
        end = await end_of_epoch(self.client, partition.where, partition.epoch)
        if end is None or end >= partition.ledger.expected or not partition.owned:
            return False
        self._restart(partition, end)
        return True

    def _restart(self, partition: Partition, offset: int) -> None:
        """Read a partition from ``offset`` on, and ignore later acknowledgements of the records delivered before."""
        self._inbox.stream(partition.where.topic).gap(None, "retention")
        self._fetcher.assign(self.partitions | {partition.where: self._partition(partition.where, offset)})

    # -- flow control and closing (backends.base.Consumer)

    @property
    def lag(self) -> int | None:
        """Number of records from the positions to the ends of the partitions; ``None`` until each was fetched once."""
        behind = 0
        for partition in self.partitions.values():
            if partition.exists and partition.end is None:
                return None
            behind += max(0, (partition.end or 0) - partition.ledger.expected)
        return behind

    def pause(self) -> None:
        """Stop fetching; records stay in the log."""
        self._fetcher.room.clear()

    def resume(self) -> None:
        """Resume fetching."""
        self._fetcher.room.set()

    async def stop(self) -> None:
        """Stop fetching for good; delivered messages can still be acknowledged."""
        for task in self._tasks:
            if task.get_name().startswith("msight_bus fetcher"):
                task.cancel()
                await asyncio.wait((task,))

    async def commit(self) -> None:
        """Do nothing: only a group commits."""

    async def close(self) -> None:
        """Stop fetching, commit, leave the group and close the connections."""
        await self.stop()
        try:
            await self.commit()
        except BusError as error:
            logger.warning("Commit of %s failed at close; its records are redelivered: %s", self.name, error)
        finally:
            self.on_closed()
            await self._end(self.left(_LEAVE_WITHIN))

    async def give_up(self, error: BusError) -> None:
        """End at once with an error, without a commit; the group redelivers uncommitted records."""
        self._fail(error)
        await self._end(leave_within=0)

    async def _end(self, leave_within: float) -> None:
        self._fetcher.assign({})
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._leave(leave_within)
        await self.client.aclose()

    async def _leave(self, within: float) -> None:
        """Leave the group, within ``within`` seconds."""
