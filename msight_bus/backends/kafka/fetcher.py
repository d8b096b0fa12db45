"""Fetches the partitions of a subscription from their leaders."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.errors import (
    FetchSessionIdNotFound,
    InvalidFetchSessionEpoch,
    KafkaConnectionError,
    KafkaError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)

from msight_bus.backends.kafka.aiokafka_compat import Client, FetchAnswer, FetchRequest
from msight_bus.backends.kafka.batch_parsing import first_epoch
from msight_bus.backends.kafka.errors import REFUSED, error_for
from msight_bus.backends.kafka.partition import Partition
from msight_bus.message import Message

logger = logging.getLogger("msight_bus")

_AGAIN_AFTER = 0.1
"""Seconds until the next fetch from a broker that no longer leads a partition, and until the first look-up of a leader."""

_LOOK_UP_EVERY = 1.0
"""Maximum seconds between two look-ups of a leader."""


_SESSION_FROM = 32
"""Minimum number of partitions for a fetch session (KIP-227); with fewer, a request that names all of them is small."""

_LAST_EPOCH = 2**31 - 1


class FetchListener(Protocol):
    """Receives the results of a `Fetcher`."""

    def fetched(self, messages: list[Message]) -> None:
        """Handle new messages of one partition."""

    def failed(self, error: Exception) -> None:
        """Handle a failed fetch, which will be repeated."""

    def leave_out(self, error: KafkaError) -> bool:
        """Exclude a topic that the user may not read; return false if the subscription cannot continue without the topic."""

    def topic_missing(self) -> None:
        """Handle an unknown topic, which may have been deleted."""

    async def truncated(self, partition: Partition) -> bool:
        """Continue where the log was truncated; return whether it was.

        Raises:
            KafkaError: the leader did not respond.
        """

    async def out_of_range(self, partition: Partition) -> None:
        """Set another position, because the log has no record at the current one.

        Raises:
            KafkaError: the broker did not report its offsets.
        """


class _Session:
    """The fetches from one broker.

    With many partitions, the fetches are one session (KIP-227): a request names only the partitions whose position has changed,
    a response only those with records or an error. A new session begins after an error, and when the partitions or the metadata
    may have changed.

    Attributes:
        partitions: the partitions to fetch, in the order in which they are requested.
        positions: offset to fetch from, by partition.
    """

    def __init__(self) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self.positions: dict[TopicPartition, int] = {}
        self._id = 0
        self._epoch = 0
        self._answered: Iterable[TopicPartition] = ()

    def begin(self, partitions: dict[TopicPartition, Partition]) -> None:
        """Fetch these partitions from now on, in a new session."""
        self.partitions = partitions
        self._epoch = 0

    def request(self, isolation: int, partition_bytes: int) -> FetchRequest:
        """Return the next request."""
        if self._epoch == 0:
            self.positions = {where: each.ledger.expected for where, each in self.partitions.items()}
            session = (self._id, 0) if len(self.partitions) >= _SESSION_FROM else (0, -1)
            return FetchRequest(self.positions, isolation, partition_bytes, session)
        at = {where: self.partitions[where].ledger.expected for where in self._answered}
        moved = {where: position for where, position in at.items() if position != self.positions[where]}
        self.positions |= moved
        return FetchRequest(moved, isolation, partition_bytes, (self._id, self._epoch))

    def answered(self, answer: FetchAnswer) -> None:
        """Note a response.

        Raises:
            KafkaError: the response is an error.
        """
        if answer.code:
            raise error_for(answer.code)()
        self._id = answer.session
        self._epoch = self._epoch % _LAST_EPOCH + 1 if answer.session else 0
        self._answered = [part.where for part in answer]


class Fetcher:
    """Fetches with at most one request to each leader at a time.

    Attributes:
        partitions: the assigned partitions; replaced by `assign`.
        room: set while the subscription accepts messages.
    """

    def __init__(
        self, client: Client, listener: FetchListener, isolation: int, partition_bytes: int, retry_after: float
    ) -> None:
        """
        Args:
            client: the connections of this subscription; not shared.
            listener: receives the results.
            isolation: `READ_COMMITTED` or `READ_UNCOMMITTED`.
            partition_bytes: maximum number of bytes of one partition in one fetch; a larger first batch arrives complete.
            retry_after: seconds until a failed fetch is repeated.
        """
        self.partitions: dict[TopicPartition, Partition] = {}
        self.room = asyncio.Event()
        self.room.set()
        self._client = client
        self._listener = listener
        self._isolation = isolation
        self._partition_bytes = partition_bytes
        self._retry_after = retry_after
        self._changed: asyncio.Future[None] | None = None
        self._changes = 0
        client.on_update = self._wake

    def assign(self, partitions: dict[TopicPartition, Partition]) -> None:
        """Replace the partitions to fetch."""
        for where, former in self.partitions.items():
            if partitions.get(where) is not former:
                former.owned = False
        self.partitions = partitions
        self._wake()

    def _wake(self) -> None:
        self._changes += 1
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def run(self) -> None:
        """Fetch until cancelled.

        Raises:
            KafkaError: the user may not read the topic.
            Exception: a bug.
        """
        fetching: dict[int, asyncio.Task[None]] = {}
        clock = asyncio.get_running_loop().time
        look_up_at, pause = 0.0, 0.0
        try:
            while True:
                self._changed = asyncio.get_running_loop().create_future()
                leaders = {self._client.leader(where) for where, each in self.partitions.items() if each.exists}
                for node in leaders - fetching.keys():
                    if node is not None:
                        fetching[node] = asyncio.create_task(self._fetch(node), name=f"msight_bus fetch from {node}")
                if None not in leaders:
                    pause = 0.0
                elif not pause or clock() >= look_up_at:  # each look-up that is answered sets `_changed`
                    self._client.force_metadata_update()
                    pause = min(2 * pause, _LOOK_UP_EVERY) or _AGAIN_AFTER
                    look_up_at = clock() + pause
                await asyncio.wait(
                    (self._changed, *fetching.values()),
                    timeout=max(0.0, look_up_at - clock()) if pause else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for node, task in list(fetching.items()):
                    if task.done():
                        del fetching[node]
                        task.result()
        finally:
            for task in fetching.values():
                task.cancel()
            if fetching:
                await asyncio.wait(fetching.values())

    async def _fetch(self, node: int) -> None:
        """Fetch from a broker while it leads an assigned partition."""
        failed = False
        session, seen = _Session(), -1
        while True:
            await self.room.wait()
            if seen != self._changes:
                seen = self._changes
                session.begin(
                    {where: each for where, each in self.partitions.items() if self._client.leader(where) == node}
                )
            if not session.partitions:
                return
            try:
                await self._fetch_once(node, session)
                failed = False
            except REFUSED:
                raise
            except (FetchSessionIdNotFound, InvalidFetchSessionEpoch):  # the broker keeps a limited number
                session.begin(session.partitions)
            except (KafkaError, OSError) as error:
                session.begin(session.partitions)
                # Brokers close connections: with connections.max.reauth.ms all, at regular intervals.
                if failed or not isinstance(error, KafkaConnectionError):
                    self._listener.failed(error)
                failed = True
                await asyncio.sleep(self._retry_after)

    async def _fetch_once(self, node: int, session: _Session) -> None:
        wanted = session.partitions
        try:
            fetched = await self._client.send(node, session.request(self._isolation, self._partition_bytes))
        except KafkaError:
            for partition in wanted.values():
                partition.note_outage()
            raise
        session.answered(fetched)
        errors: list[tuple[Partition, KafkaError]] = []
        problems: list[Exception] = []
        for where, code, end, stable, aborted, data in fetched:
            partition = wanted[where]
            if not partition.owned or partition.ledger.expected != session.positions[where]:
                continue  # the response to a fetch before a rebalance
            if code:
                errors.append((partition, error_for(code)(where.topic)))
                continue
            partition.end, partition.stable = end, stable
            if data:  # brokers fill an answer in the order of the request, and stop when it is full (KIP-74)
                wanted[where] = wanted.pop(where)
            if 0 <= partition.epoch < first_epoch(data):  # the first records of another leader
                try:
                    if await self._listener.truncated(partition):
                        continue
                except (KafkaError, OSError) as problem:
                    problems.append(problem)
                    continue
                if not partition.owned:
                    continue
            # No await between the check of `owned` and the queue.
            for messages in partition.read(data, aborted):
                self._listener.fetched(messages)
                await asyncio.sleep(0)
                await self.room.wait()
                if not partition.owned:
                    break
        for partition, error in errors:
            try:
                await self._handle(partition, error)
            except (KafkaError, OSError) as problem:
                if not isinstance(problem, KafkaError) or not self._listener.leave_out(problem):
                    problems.append(problem)
        if any(error.invalid_metadata for _, error in errors):
            await asyncio.sleep(_AGAIN_AFTER)
        if problems:
            raise next((problem for problem in problems if isinstance(problem, REFUSED)), problems[0])

    async def _handle(self, partition: Partition, error: KafkaError) -> None:
        logger.debug("Cannot fetch %s at offset %d: %r", partition.where, partition.ledger.expected, error)
        if isinstance(error, OffsetOutOfRangeError):
            await self._listener.out_of_range(partition)
            return
        if isinstance(error, UnknownTopicOrPartitionError):
            self._listener.topic_missing()
        elif not error.invalid_metadata:
            raise error
        self._client.force_metadata_update()
