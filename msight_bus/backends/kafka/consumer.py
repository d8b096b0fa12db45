"""The consumer of one subscription. `group.py` and `manual_assignment.py` assign its partitions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError

from msight_bus.backends.base import Inbox, Selection
from msight_bus.backends.kafka.aiokafka_compat import (
    EARLIEST,
    LATEST,
    READ_COMMITTED,
    READ_UNCOMMITTED,
    Client,
    TopicIdentity,
    TopicIdentityRequest,
    read_identity,
)
from msight_bus.backends.kafka.errors import REFUSED, translate
from msight_bus.backends.kafka.fetcher import Fetcher
from msight_bus.backends.kafka.partition import DeadLetter, Partition
from msight_bus.backends.kafka.start_offsets import Moment, list_offsets, resolve
from msight_bus.errors import BusError
from msight_bus.message import Message
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

_CHECK_EVERY = 0.5
"""Seconds between two checks of aiokafka's tasks and of open transactions."""

_LOOK_EVERY = 5.0
"""Seconds between two checks of the topic's identity and partitions."""

_IDENTIFY_WITHIN = 3.0
"""Maximum seconds of one check; a group member waits for it in each rebalance."""

_LOOK_AGAIN = 0.1
"""Seconds until the next check after a broker reported the topic as unknown."""

_LOOK_FOR = 0.5
"""Seconds between two checks while the topic does not exist."""

_GONE_AFTER = 2
"""Consecutive checks without the topic after which it counts as deleted; the metadata of one broker can be out of date."""

_LEAVE_WITHIN = 1.0
"""Maximum seconds for leaving the group."""


class KafkaConsumer:
    """Fetches a topic's records into a subscription (backends.base.Consumer, fetcher.FetchListener).

    Attributes:
        on_closed: called when the subscription is closed.
        left: returns the seconds that are left to wait for the broker, at most the given number.
    """

    def __init__(
        self, selection: Selection, inbox: Inbox, settings: BusSettings, client: Client, dead_letter: DeadLetter
    ) -> None:
        self.topic = selection.topics[0]
        self.client = client
        self._selection = selection
        self._inbox = inbox
        self._stream = inbox.stream(self.topic)
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
        self._identity: TopicIdentity | None = None
        self._exists = True
        self._missing = asyncio.Event()
        self._missing_checks = 0
        self._failure: BusError | None = None
        self._failing = False
        self._tasks: list[asyncio.Task[None]] = []
        self.on_closed: Callable[[], None] = lambda: None
        self.left: Callable[[float], float] = lambda most: most

    async def start(self) -> None:
        """Start to deliver and return once the start offsets are fixed: records published afterwards are delivered.

        Raises:
            KafkaError, BusError: the topic cannot be read.
        """
        raise NotImplementedError

    async def _connect(self) -> None:
        """Connect and get the partitions of the topic.

        Raises:
            KafkaError: no broker reported the partitions within the request timeout.
        """
        await self.client.bootstrap()
        self.client.track(self.topic)
        try:
            async with asyncio.timeout(self.client.request_timeout):
                while not (await self.client.update_metadata() and self.client.partitions(self.topic)):
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError as error:
            raise KafkaTimeoutError(f"no broker reported the partitions of {self.topic!r}") from error

    @property
    def partitions(self) -> dict[TopicPartition, Partition]:
        """The partitions that are assigned to this subscription."""
        return self._fetcher.partitions

    def _all_partitions(self) -> list[TopicPartition]:
        return [TopicPartition(self.topic, partition) for partition in sorted(self.client.partitions(self.topic))]

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
        return await resolve(self.client, partitions, start, self._isolation)

    # -- tasks

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=f"msight_bus {name} {self.topic}")
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, REFUSED):
            self._fail(translate(error, "subscribe"))
        elif error is not None:  # no caller awaits the task: end the subscription with the error
            logger.error("Consuming %s failed.", self.topic, exc_info=error)
            self._fail(translate(error, "subscribe"))

    def _fail(self, error: BusError) -> None:
        """End the subscription with an error; the first error counts."""
        self._failure = self._failure or error
        self._inbox.fail(self._failure)

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
                    f"Kafka: consuming {self.topic!r} stopped because a task of aiokafka ended: {error!r}"
                ) from error
            self._check_client()
            for partition in self.partitions.values():
                partition.warn_if_held_back(clock())

    def _check_client(self) -> None:
        """Report the errors that aiokafka raises only in a fetch; does nothing without a group."""

    # -- deletion and re-creation of the topic

    async def _watch_topic(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY if self._exists else _LOOK_FOR):
                    await self._missing.wait()
                await asyncio.sleep(_LOOK_AGAIN)
            except TimeoutError:
                pass
            self._missing.clear()
            try:
                await self._check_topic()
            except REFUSED:
                raise  # fails the subscription
            except (KafkaError, OSError) as error:
                self.failed(error)

    async def _check_topic(self) -> None:
        """Check whether the topic was created again; if so, consume the new topic from its start.

        Raises:
            KafkaError: no broker responded.
        """
        raise NotImplementedError

    async def _identify(self) -> bool:
        """Get the topic's identity and return whether it is known to have changed.

        Raises:
            KafkaError: the user may not describe the topic.
        """
        try:
            answer = await self.client.ask(TopicIdentityRequest(self.topic), within=_IDENTIFY_WITHIN, shared=True)
            found = read_identity(answer, self.topic)
        except NotImplementedError:  # brokers before Kafka 2.8 have no topic ids
            return False
        except REFUSED:
            raise
        except (KafkaError, OSError) as error:
            logger.debug("No identity of topic %s: %s", self.topic, error)
            return False
        self._missing_checks = self._missing_checks + 1 if found is None else 0
        self._exists = found is not None
        if found is None:
            if self._missing_checks == _GONE_AFTER:
                logger.warning("Topic %s was deleted; no messages until it is created again.", self.topic)
            return False
        before, self._identity = self._identity, found
        if before is None or before.id == found.id:
            return False
        logger.warning("Topic %s was deleted and created again; consuming from its start.", self.topic)
        self._stream.gap(None, "retention")
        return True

    # -- fetcher.FetchListener

    def fetched(self, messages: list[Message]) -> None:
        """Deliver new messages to the subscription."""
        self._failing = False
        self._stream.deliver(messages)

    def failed(self, error: Exception) -> None:
        """Log a retriable error: a WARNING at the first, DEBUG at the next ones until messages arrive."""
        level = logging.DEBUG if self._failing else logging.WARNING
        self._failing = True
        logger.log(level, "Fetch from %s failed; retrying: %s", self.topic, translate(error, "subscribe"))

    def topic_missing(self) -> None:
        """Check the topic's identity soon."""
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
        if partition.owned and newest < partition.ledger.expected:
            partition.truncated(oldest)

    # -- flow control and closing (backends.base.Consumer)

    @property
    def lag(self) -> int | None:
        """Records between the positions and the ends of the partitions; ``None`` until each partition was fetched once."""
        behind = 0
        for partition in self.partitions.values():
            if partition.end is None:
                return None
            behind += max(0, partition.end - partition.ledger.expected)
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
            logger.warning("Commit of %s failed at close; its records are redelivered: %s", self.topic, error)
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
