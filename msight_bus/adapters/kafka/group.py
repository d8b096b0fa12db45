"""A member of a consumer group: partitions come and go, and what is done is committed.

Which member decides where an uncommitted partition starts has to be one rule, or what is published between two members'
decisions is skipped: the owner of partition 0 decides for all of them, in one commit. A partition that appears when
partition 0 has been committed is new, and starts at its beginning; its owner commits that.

An assignment can name partitions that are newer than this member's metadata, because the leader of the group made it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable

from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import KafkaError

from msight_bus.adapters.deadlines import loop_timeout
from msight_bus.adapters.kafka.client import start_client
from msight_bus.adapters.kafka.consumer_compat import check_group, commit_any, committed_offsets, fetch_lists, rejoin
from msight_bus.adapters.kafka.errors import REFUSED, translate
from msight_bus.adapters.kafka.feed import KafkaFeed
from msight_bus.adapters.kafka.start import resolve
from msight_bus.errors import BusError, ConnectionLostError

logger = logging.getLogger("msight_bus")

_POLL = 0.05
_COMPARE_EVERY = 10.0
_MANY = 100
"""Records after which a member whose own partitions received none is told; fewer can be chance."""

_FOREIGN_OWNER = 5.0
"""How long another member may take to decide; one of another make never does."""


class GroupFeed(KafkaFeed, ConsumerRebalanceListener):
    """A subscription with ``group_id``."""

    _joined: asyncio.Event

    async def start(self) -> None:
        """Join the group and wait until every partition's start is committed."""
        self._joined = asyncio.Event()
        await start_client(self._consumer)
        fetch_lists(self._consumer, self)
        self._consumer.subscribe([self.topic], listener=self)
        pump = self._run(self._pump(), "pump")
        self._watch_client()
        joined = asyncio.ensure_future(self._joined.wait())
        try:
            async with asyncio.timeout(self._settings.limits.connect_timeout):
                while not joined.done() and not pump.done():
                    await asyncio.wait((pump, joined), timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
                    if self._failure is not None:
                        raise self._failure
                    check_group(self._consumer)
                await self._all_committed()
        except TimeoutError:
            raise ConnectionLostError(
                f"The group {self._request.group_id!r} did not accept a member for {self.topic!r} within "
                f"{self._settings.limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT)."
            ) from None
        finally:
            joined.cancel()
        self._run(self._commit_regularly(), "committer")
        self._run(self._compare_partitions(), "comparison")

    async def _compare_partitions(self) -> None:
        """Warn once if only partitions of other members receive records."""
        first: dict[TopicPartition, int] = {}
        own: set[int] = set()
        while True:
            await asyncio.sleep(_COMPARE_EVERY)
            try:
                ends: dict[TopicPartition, int] = dict(await self._consumer.end_offsets(self._all_partitions()))
            except (KafkaError, OSError):
                continue
            if own != set(self._assignment) or ends.keys() != first.keys():
                first, own = ends, set(self._assignment)
                continue
            received = {where.partition: end - first[where] for where, end in ends.items()}
            others = {number: count for number, count in received.items() if number not in own and count > 0}
            if own and sum(others.values()) >= _MANY and not any(received[number] for number in own):
                self._warn_of_idle_partitions(own, others)
                return

    def _warn_of_idle_partitions(self, own: set[int], others: dict[int, int]) -> None:
        logger.warning(
            "Group %s: this member owns only partitions of %s that receive nothing (%s), while others do (%s). All messages "
            "without a key of one publisher go to one partition. To share them, publish with keys, or spread them: "
            "publisher(spread=True), NodeConfig(spread=True), or MSIGHT_KAFKA_UNKEYED=spread at the publisher.",
            self._request.group_id,
            self.topic,
            ", ".join(map(str, sorted(own))),
            ", ".join(f"{number}: {count} records" for number, count in sorted(others.items())),
        )

    async def _all_committed(self) -> None:
        waited = 0.0
        while waited < _FOREIGN_OWNER:
            everything = self._all_partitions()
            if len(await committed_offsets(self._consumer, everything)) == len(everything):
                return
            await asyncio.sleep(_POLL)
            waited += _POLL

    def _all_partitions(self) -> list[TopicPartition]:
        partitions = self._consumer.partitions_for_topic(self.topic) or set()
        return [TopicPartition(self.topic, partition) for partition in sorted(partitions)]

    def _check_client(self) -> None:
        try:
            check_group(self._consumer)
        except REFUSED as error:
            self._fail(translate(error, "subscribe"))
        except KafkaError as error:
            self._complain(error)  # aiokafka tries again once the error has been taken

    # -- rebalances: aiokafka awaits these, and sends no heartbeat while the second one runs

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Commit the finished prefix and let go; no handler is waited for."""
        await self._guard(self._revoke())

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Find where each partition goes on, commit what is decided here, and fetch from there."""
        await self._guard(self._assign(list(assigned)))

    async def _guard(self, listening: Awaitable[None]) -> None:
        """aiokafka logs what a listener raises, and keeps a member that would read nothing."""
        try:
            await listening
        except REFUSED as error:
            self._fail(translate(error, "subscribe"))
        except (KafkaError, OSError) as error:
            logger.warning(
                "A rebalance of %s failed, rejoining the group: %s", self.topic, translate(error, "subscribe")
            )
            await asyncio.sleep(self._settings.limits.reconnect_min)
            rejoin(self._consumer)
        except Exception as error:
            logger.exception("A rebalance of %s failed.", self.topic)
            self._fail(translate(error, "subscribe"))

    async def _revoke(self) -> None:
        self._resolved.clear()
        try:
            await self._commit_finished()
        except BusError as error:
            logger.warning("Not committed before a rebalance, so it is delivered again: %s", error)
        finally:
            self._let_go()
            gone = set(self._assignment.values())
            self._sink.discard(lambda message: message._settlement in gone, "revoked")

    async def _assign(self, own: list[TopicPartition]) -> None:
        async with loop_timeout(self._settings.kafka.session_timeout * 0.6):
            starts = await self._starts(own)
        for partition, offset in starts.items():
            self._consumer.seek(partition, offset)
        self._assignment = {where.partition: self._partition(where.partition, at) for where, at in starts.items()}
        for partition in self._assignment.values():
            partition.ledger.committed = partition.ledger.expected
        self._resolved.set()
        self._joined.set()

    async def _starts(self, own: list[TopicPartition]) -> dict[TopicPartition, int]:
        everything = sorted({*self._all_partitions(), *own})
        committed = await committed_offsets(self._consumer, everything)
        first = TopicPartition(self.topic, 0)
        decides = first in own and first not in committed
        if not decides and first not in committed:
            committed = await self._decided_elsewhere(everything, first)
        missing = [where for where in (everything if decides else own) if where not in committed]
        if missing:
            start = "earliest" if first in committed else self._request.start
            decided = await resolve(self._consumer, missing, start)
            await commit_any(self._consumer, {where: OffsetAndMetadata(at, "") for where, at in decided.items()})
            committed |= decided
        return {where: committed[where] for where in own}

    async def _decided_elsewhere(
        self, everything: list[TopicPartition], first: TopicPartition
    ) -> dict[TopicPartition, int]:
        waited = 0.0
        while True:
            committed = await committed_offsets(self._consumer, everything)
            if first in committed or waited >= _FOREIGN_OWNER:
                return committed
            await asyncio.sleep(_POLL)
            waited += _POLL

    # -- commits

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.kafka.commit_interval)
            try:
                await self._commit_finished()
            except BusError as error:
                self._complain(error)

    async def commit(self) -> None:
        """Commit the finished prefixes.

        Raises:
            BusError: not committed; the records come again.
        """
        await self._commit_finished()
