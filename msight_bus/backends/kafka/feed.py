"""One subscription's stream from Kafka. How partitions come and go is in `group.py` and `live_view.py`."""

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
from msight_bus.backends.kafka.start import Moment, list_offsets, resolve
from msight_bus.errors import BusError
from msight_bus.message import Message
from msight_bus.settings import BusSettings

logger = logging.getLogger("msight_bus")

_CHECK_EVERY = 0.5

_LOOK_EVERY = 5.0
"""Seconds after which the topic is asked for its identity and its partitions."""

_IDENTIFY_WITHIN = 3.0
"""Seconds for that; a member of a group waits for it in each rebalance."""

_LOOK_AGAIN = 0.1
"""Seconds until then where a broker does not know the topic any more."""

_LOOK_FOR = 0.5
"""Seconds until then while no broker knows it."""

_GONE_AFTER = 2
"""Looks in succession that find no topic; one broker can be behind the others."""

_LEAVE_WITHIN = 1.0


class KafkaFeed:
    """Fetches a topic's records into a subscription (backends.base.Consumer, fetcher.FetchListener).

    Attributes:
        on_closed: called when the subscription is closed.
        left: returns how many of so many seconds are left to wait for the broker.
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
        self._looks_missing = 0
        self._failure: BusError | None = None
        self._problem = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.on_closed: Callable[[], None] = lambda: None
        self.left: Callable[[float], float] = lambda most: most

    async def start(self) -> None:
        """Begin to deliver; returns when the positions of all that is published from now on are certain."""
        raise NotImplementedError

    async def _connect(self) -> None:
        """Connect, and learn which partitions the topic has.

        Raises:
            KafkaError: no broker told it within the request timeout.
        """
        await self.client.bootstrap()
        self.client.track(self.topic)
        try:
            async with asyncio.timeout(self.client.request_timeout):
                while not (await self.client.update_metadata() and self.client.partitions(self.topic)):
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError as error:
            raise KafkaTimeoutError(f"no broker told the partitions of {self.topic!r}") from error

    @property
    def partitions(self) -> dict[TopicPartition, Partition]:
        """What this subscription owns."""
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
        elif error is not None:  # nobody awaits the task, and its subscription must not stand still in silence
            logger.error("Reading %s failed.", self.topic, exc_info=error)
            self._fail(translate(error, "subscribe"))

    def _fail(self, error: BusError) -> None:
        """End the subscription with an error."""
        self._failure = self._failure or error
        self._inbox.fail(self._failure)

    def _begin_fetching(self, *client_tasks: asyncio.Task[None]) -> asyncio.Task[None]:
        """Fetch, and fail when one of aiokafka's own tasks has ended."""
        self._run(self._watch(client_tasks), "watch")
        return self._run(self._fetcher.run(), "fetcher")

    async def _watch(self, client_tasks: tuple[asyncio.Task[None], ...]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            done, _ = await asyncio.wait(client_tasks, timeout=_CHECK_EVERY, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = None if task.cancelled() else task.exception()
                raise BusError(f"Kafka: the client stopped reading {self.topic!r}: {error!r}") from error
            self._check_client()
            for partition in self.partitions.values():
                partition.warn_if_held_back(clock())

    def _check_client(self) -> None:
        """Take what aiokafka tells only to whoever fetches."""

    # -- the topic, which may be deleted and created again

    async def _look_at_topic(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY if self._exists else _LOOK_FOR):
                    await self._missing.wait()
                await asyncio.sleep(_LOOK_AGAIN)
            except TimeoutError:
                pass
            self._missing.clear()
            try:
                await self._look()
            except REFUSED:
                raise  # and the subscription fails
            except (KafkaError, OSError) as error:
                self.failed(error)

    async def _look(self) -> None:
        """See whether the topic was created again, and begin at its beginning if it was.

        Raises:
            KafkaError: not known.
        """
        raise NotImplementedError

    async def _identify(self) -> bool:
        """Learn the topic's identity; returns whether it is certainly another one than before.

        Raises:
            KafkaError: the topic may not be described.
        """
        try:
            answer = await self.client.ask(TopicIdentityRequest(self.topic), within=_IDENTIFY_WITHIN, shared=True)
            found = read_identity(answer, self.topic)
        except NotImplementedError:  # the brokers are older than Kafka 2.8 and have no ids
            return False
        except REFUSED:
            raise
        except (KafkaError, OSError) as error:
            logger.debug("No broker tells the identity of topic %s: %s", self.topic, error)
            return False
        self._looks_missing = self._looks_missing + 1 if found is None else 0
        self._exists = found is not None
        if found is None:
            if self._looks_missing == _GONE_AFTER:
                logger.warning("Topic %s was deleted: nothing is received until it is created again.", self.topic)
            return False
        before, self._identity = self._identity, found
        if before is None or before.id == found.id:
            return False
        logger.warning("Topic %s was deleted and created again: it is read from its beginning.", self.topic)
        self._stream.gap(None, "retention")
        return True

    # -- what the fetcher reports

    def fetched(self, messages: list[Message]) -> None:
        """Deliver new messages."""
        self._problem = ""
        self._stream.deliver(messages)

    def failed(self, error: Exception) -> None:
        """Log a problem that passes, once."""
        text = str(translate(error, "subscribe"))
        if text != self._problem:
            self._problem = text
            logger.warning("Fetching %s: %s", self.topic, text)

    def topic_missing(self) -> None:
        """Look soon whether the topic is still the same."""
        self._missing.set()

    async def out_of_range(self, partition: Partition) -> None:
        """Retention has deleted what comes next: report how much, and go on with the oldest that is left.

        Raises:
            KafkaError: the broker does not say.
        """
        where = partition.where
        oldest = (await list_offsets(self.client, [where], EARLIEST, self._isolation))[where]
        if not partition.owned or partition.deleted_before(oldest):
            return
        # The log was truncated or the topic created again.
        newest = (await list_offsets(self.client, [where], LATEST, self._isolation))[where]
        if partition.owned and newest < partition.ledger.expected:
            partition.truncated(oldest)

    # -- flow control and the end (backends.base.Consumer)

    @property
    def lag(self) -> int | None:
        """Records from the positions to the ends of the partitions; ``None`` before each has been fetched from."""
        behind = 0
        for partition in self.partitions.values():
            if partition.end is None:
                return None
            behind += max(0, partition.end - partition.ledger.expected)
        return behind

    def pause(self) -> None:
        """Fetch no more; the log waits."""
        self._fetcher.room.clear()

    def resume(self) -> None:
        """Fetch again."""
        self._fetcher.room.set()

    async def stop(self) -> None:
        """End the fetching; what was delivered can still be settled."""
        for task in self._tasks:
            if task.get_name().startswith("msight_bus fetcher"):
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
            await self._end(self.left(_LEAVE_WITHIN))

    async def give_up(self, error: BusError) -> None:
        """End at once, because Kafka will answer no more; what was not committed comes again, to somebody."""
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
        """Leave the group, within so many seconds."""
