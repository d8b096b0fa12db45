"""A member of a consumer group: partitions come and go, and what is done is committed.

Which member decides where an uncommitted partition starts has to be one rule, or what is published between two members'
decisions is skipped: of the members of this make, the owner of the lowest partition decides for all of them, in one commit.
Members of another make are not waited for, and their partitions are left to them. A partition that is not committed while
others are is new, and starts at its beginning; its owner commits that.

An assignment can name partitions that are newer than this member's metadata, because the leader of the group made it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Any

from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import KafkaError, RebalanceInProgressError

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.kafka.aiokafka_compat import LATEST, Member
from msight_bus.backends.kafka.errors import REFUSED, translate
from msight_bus.backends.kafka.feed import KafkaFeed
from msight_bus.backends.kafka.start import Moment, list_offsets, moment_of
from msight_bus.errors import BusError, ConnectionLostError, fresh

logger = logging.getLogger("msight_bus")

_POLL = 0.05
_DECIDES_WITHIN = 5.0
"""Seconds that another member of this make may take to decide."""

_JOIN_WITHIN = 60.0
"""Seconds to be accepted by a group that can be reached. A member that left without saying so is waited for until its session
has expired, which takes 45 s with the defaults of Kafka's own clients."""

_TELL_EVERY = 5.0

_COMMIT_WITHIN = 3.0

_COMPARE_EVERY = 10.0
_MANY = 100
"""Records after which a member whose own partitions received none is told; fewer can be chance."""


class GroupFeed(KafkaFeed, ConsumerRebalanceListener):
    """A subscription with ``group_id``."""

    def __init__(self, group_id: str, *arguments: Any) -> None:
        """``arguments`` are those of `KafkaFeed`."""
        super().__init__(*arguments)
        self._group_id = group_id
        self._member: Member | None = None
        self._joined = asyncio.Event()
        self._start = self._selection.start
        self._begins_anew = False
        # where this member would have begun in each partition when it joined: another make's may hold it and commit nothing
        self._foreseen: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Join the group and wait until every partition's start is committed."""
        await self._connect()
        self._member = Member(self.client, self.topic, self._group_id, self._settings.kafka.session_timeout, self)
        fetching = self._begin_fetching(self.client.background_task, self._member.background_task)
        await self._join(fetching)
        await self._wait_for_mates()
        self._run(self._commit_regularly(), "committer")
        self._run(self._look_at_topic(), "topic")
        self._run(self._compare_partitions(), "comparison")

    @property
    def member(self) -> Member:
        """The membership."""
        assert self._member is not None
        return self._member

    async def _compare_partitions(self) -> None:
        """Warn once if only partitions of other members receive records."""
        first: dict[TopicPartition, int] = {}
        own: set[TopicPartition] = set()
        while True:
            await asyncio.sleep(_COMPARE_EVERY)
            try:
                ends = await list_offsets(self.client, self._all_partitions(), LATEST, self._isolation)
            except (KafkaError, OSError):
                continue
            if own != self.partitions.keys() or ends.keys() != first.keys():
                first, own = ends, set(self.partitions)
                continue
            received = {where: end - first[where] for where, end in ends.items()}
            others = {where: count for where, count in received.items() if where not in own and count > 0}
            if own and sum(others.values()) >= _MANY and not any(received[where] for where in own):
                self._warn_of_idle_partitions(own, others)
                return

    def _warn_of_idle_partitions(self, own: set[TopicPartition], others: dict[TopicPartition, int]) -> None:
        logger.warning(
            "Group %s: this member owns only partitions of %s that receive nothing (%s), while others do (%s). Messages of one "
            "key go to one partition, and so do those of one publisher without a key. To share them, publish with more keys, or "
            "spread those without one: "
            "publisher(spread=True), NodeConfig(spread=True), or MSIGHT_KAFKA_UNKEYED=spread at the publisher.",
            self._group_id,
            self.topic,
            ", ".join(str(where.partition) for where in sorted(own)),
            ", ".join(f"{where.partition}: {count} records" for where, count in sorted(others.items())),
        )

    async def _join(self, fetching: asyncio.Task[None]) -> None:
        """Wait until partitions are assigned.

        Raises:
            ConnectionLostError: the group's coordinator is not reached within ``connect_timeout``, or does not accept a member.
            BusError: it refuses.
        """
        limits, clock = self._settings.limits, asyncio.get_running_loop().time
        begun = reached = clock()
        within = max(_JOIN_WITHIN, limits.connect_timeout + 2 * self._settings.kafka.session_timeout)
        told = begun + _TELL_EVERY
        joined = asyncio.ensure_future(self._joined.wait())
        try:
            while not joined.done() and not fetching.done():
                await asyncio.wait((fetching, joined), timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
                if self._failure is not None:
                    raise fresh(self._failure)
                self.member.check()
                now = clock()
                if self.member.has_coordinator:
                    reached = now
                if now - reached >= limits.connect_timeout:
                    raise ConnectionLostError(
                        f"The coordinator of the group {self._group_id!r} did not answer within "
                        f"{limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT)."
                    )
                if now - begun >= within:
                    raise ConnectionLostError(
                        f"The group {self._group_id!r} did not accept a member for {self.topic!r} within {within:g} s."
                    )
                if now >= told:
                    told = now + _TELL_EVERY
                    logger.warning(
                        "Joining the group %s for %s: waiting for %.0f s, at most %g s. A member that left without saying so is "
                        "waited for until its session expires.",
                        self._group_id,
                        self.topic,
                        now - begun,
                        within,
                    )
        finally:
            joined.cancel()

    async def _wait_for_mates(self) -> None:
        """Wait until the members of this make have committed where their partitions start."""
        waited = 0.0
        while waited < _DECIDES_WITHIN:
            everything = self._all_partitions()
            missing = set(everything) - set(await self.member.committed(everything))
            if not missing or await self._has_decided(missing):
                return
            await asyncio.sleep(_POLL)
            waited += _POLL

    async def _has_decided(self, missing: set[TopicPartition]) -> bool:
        """Whether none of these partitions belongs to a member of this make."""
        try:
            mates = await self.member.partitions_of_mates()
        except RebalanceInProgressError:
            return False
        return mates is None or not missing & mates

    def _check_client(self) -> None:
        try:
            self.member.check()
        except REFUSED as error:
            self._fail(translate(error, "subscribe"))
        except KafkaError as error:
            self.failed(error)  # aiokafka tries again once the error has been taken

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
        except RebalanceInProgressError:  # whatever was to be found out, the next assignment does
            self.member.request_rejoin()
        except REFUSED as error:
            self._fail(translate(error, "subscribe"))
        except (KafkaError, OSError) as error:
            logger.warning(
                "A rebalance of %s failed, rejoining the group: %s", self.topic, translate(error, "subscribe")
            )
            await asyncio.sleep(self._settings.limits.reconnect_min)
            self.member.request_rejoin()
        except Exception as error:
            logger.exception("A rebalance of %s failed.", self.topic)
            self._fail(translate(error, "subscribe"))

    async def _revoke(self) -> None:
        try:
            await self._commit_finished()
        except BusError as error:
            logger.warning("Not committed before a rebalance, so it is delivered again: %s", error)
        finally:
            gone = set(self.partitions.values())
            self._fetcher.assign({})
            self._inbox.discard(lambda message: message._settlement in gone, "revoked")

    async def _assign(self, own: list[TopicPartition]) -> None:
        async with loop_timeout(self._settings.kafka.session_timeout * 0.6):
            if await self._identify():
                self._begin_anew()
            starts = await self._starts(sorted(own))
        partitions = {
            where: self._partition(where, start.offset, Moment.noted(start.metadata)) for where, start in starts.items()
        }
        for partition in partitions.values():
            partition.ledger.committed = partition.ledger.expected
        self._fetcher.assign(partitions)
        self._joined.set()

    async def _look(self) -> None:
        if await self._identify():
            self._begin_anew()
            self.member.request_rejoin()
        elif self._identity is not None and self._identity.partitions != len(self._all_partitions()):
            await self.client.update_metadata()  # from which the leader of the group assigns

    def _begin_anew(self) -> None:
        """What was read of a topic that is gone settles nothing, and partitions of the new one start at their beginning."""
        self._fetcher.assign({})
        self._foreseen = {}
        self._start = "earliest"
        self._begins_anew = True

    async def _starts(self, own: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        if self._begins_anew:  # what is committed may be of the topic that is gone
            committed = await self._decide(own)
            self._begins_anew = not self._all_partitions()  # nobody was given any, as the metadata are of before
            return committed
        everything = sorted({*self._all_partitions(), *own})
        committed = await self.member.committed(everything)
        if not committed:
            committed = await self._first_starts(everything, own)
        missing = [where for where in own if where not in committed]
        if missing:  # they are new, or another make's member had them
            committed |= await self._decide(missing)
        return {where: committed[where] for where in own}

    async def _first_starts(
        self, everything: list[TopicPartition], own: list[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """What one member decides where nothing is committed yet."""
        mates = await self._mates(own)
        found = await self._resolve(sorted({*everything, *mates}), self._start)
        self._foreseen = found | self._foreseen
        if not own:
            return {}
        if mates[0] in own:
            return await self._decide(mates)
        return await self._decided_elsewhere(own)

    async def _decide(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Commit where partitions start: where they were when this member joined, and new ones at their beginning."""
        new = [where for where in partitions if where not in self._foreseen]
        starts = self._foreseen | await self._resolve(new, "earliest")
        moment = moment_of(self._start)
        decided = {where: OffsetAndMetadata(starts[where], moment.note if moment else "") for where in partitions}
        if decided:
            await self.member.commit(decided)
        return decided

    async def _mates(self, own: list[TopicPartition]) -> list[TopicPartition]:
        """The partitions of the topic that members of this make own, in order."""
        mates = await self.member.partitions_of_mates() or set()
        return sorted({*own, *(where for where in mates if where.topic == self.topic)})

    async def _decided_elsewhere(self, own: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        waited = 0.0
        while True:
            committed = await self.member.committed(own)
            if len(committed) == len(own) or waited >= _DECIDES_WITHIN:
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
                self.failed(error)

    async def commit(self) -> None:
        """Commit the finished prefixes.

        Raises:
            BusError: not committed; the records come again.
        """
        await self._commit_finished()

    async def _commit_finished(self) -> None:
        """Commit the finished prefixes, forwards only, within a deadline.

        Raises:
            BusError: not committed; the records come again.
        """
        if self._member is None or not self._member.is_joined:
            return
        ledgers = {where: partition.ledger for where, partition in self.partitions.items() if partition.owned}
        finished = {
            where: ledger.finished for where, ledger in ledgers.items() if ledger.finished > (ledger.committed or 0)
        }
        if not finished:
            return
        within = self.left(_COMMIT_WITHIN)
        try:
            async with loop_timeout(within):
                await self._member.commit({where: OffsetAndMetadata(at, "") for where, at in finished.items()})
        except TimeoutError as error:
            raise BusError(f"Kafka did not confirm a commit of {self.topic!r} within {within:.2g} s.") from error
        except KafkaError as error:
            raise translate(error, "subscribe") from error
        for where, offset in finished.items():
            ledgers[where].committed = offset

    async def _leave(self, within: float) -> None:
        member, self._member = self._member, None
        if member is not None:
            await member.aclose(within)
