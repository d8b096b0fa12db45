"""The consumer of a subscription with a group: rebalances and commits.

One member must decide the start offsets of all uncommitted partitions; otherwise records published between the decisions of two
members are skipped. Of the members that run this library (the peers), the owner of the lowest partition decides for all peers,
in one commit. Members that run another client decide for their own partitions, and no peer waits for them. A partition without
a committed offset in a group that has others is new: its owner commits its first offset.

An assignment can contain partitions that are missing from this member's metadata, because the group leader computes it.
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
from msight_bus.backends.kafka.consumer import KafkaConsumer
from msight_bus.backends.kafka.errors import REFUSED, translate
from msight_bus.backends.kafka.start_offsets import Moment, list_offsets, moment_of
from msight_bus.errors import BusError, ConnectionLostError, fresh

logger = logging.getLogger("msight_bus")

_POLL = 0.05
"""Seconds between two checks of the membership or the committed offsets."""

_DECIDES_WITHIN = 5.0
"""Seconds to wait for the start offsets of another peer."""

_JOIN_WITHIN = 60.0
"""Minimum deadline, in seconds, for joining. The coordinator waits for a crashed member until its session expires: 45 s with the
defaults of Kafka's Java clients."""

_TELL_EVERY = 5.0
"""Seconds between two WARNINGs while joining."""

_COMMIT_WITHIN = 3.0
"""Deadline of a commit, in seconds."""

_COMPARE_EVERY = 10.0
"""Seconds between two comparisons of own and other partitions."""

_MANY = 100
"""Number of records in other partitions at which a member without records logs a WARNING; fewer can be chance."""


class GroupConsumer(KafkaConsumer, ConsumerRebalanceListener):
    """The consumer of a subscription with ``group_id``."""

    def __init__(self, group_id: str, *arguments: Any) -> None:
        """``arguments`` are those of `KafkaConsumer`."""
        super().__init__(*arguments)
        self._group_id = group_id
        self._member: Member | None = None
        self._joined = asyncio.Event()
        self._start = self._selection.start
        self._was_recreated = False
        # start offsets when this member joined, also of partitions whose owner runs another client and commits nothing
        self._initial_starts: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Join the group and wait until the start offset of every partition is committed.

        Raises:
            ConnectionLostError: the coordinator did not respond, or the group did not accept the member, in time.
            KafkaError, BusError: the user may not read the topic or join the group.
        """
        await self._connect()
        self._member = Member(self.client, self.topic, self._group_id, self._settings.kafka.session_timeout, self)
        fetching = self._begin_fetching(self.client.background_task, self._member.background_task)
        await self._join(fetching)
        await self._wait_for_peers()
        self._run(self._commit_regularly(), "committer")
        self._run(self._watch_topic(), "topic")
        self._run(self._compare_partitions(), "comparison")

    @property
    def member(self) -> Member:
        """The membership of the group, between `start` and `close`."""
        assert self._member is not None
        return self._member

    async def _compare_partitions(self) -> None:
        """Log a WARNING, once, if only partitions of other members receive records."""
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
            "Group %s: this member's partitions of %s receive nothing (%s); other partitions do (%s). Messages of one "
            "key, and one publisher's messages without a key, go to one partition. To share them, publish with more keys, or "
            "spread messages without a key at the publisher: "
            "publisher(spread=True), NodeConfig(spread=True) or MSIGHT_KAFKA_UNKEYED=spread.",
            self._group_id,
            self.topic,
            ", ".join(str(where.partition) for where in sorted(own)),
            ", ".join(f"{where.partition}: {count} records" for where, count in sorted(others.items())),
        )

    async def _join(self, fetching: asyncio.Task[None]) -> None:
        """Wait for the first assignment.

        Raises:
            ConnectionLostError: the coordinator did not respond within ``connect_timeout`` seconds, or did not accept the member.
            BusError: the coordinator refused.
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
                        "Joining the group %s for %s: waiting for %.0f s, at most %g s. The coordinator waits for a crashed "
                        "member until its session expires.",
                        self._group_id,
                        self.topic,
                        now - begun,
                        within,
                    )
        finally:
            joined.cancel()

    async def _wait_for_peers(self) -> None:
        """Wait until the peers have committed the start offsets of their partitions, at most 5 s."""
        waited = 0.0
        while waited < _DECIDES_WITHIN:
            everything = self._all_partitions()
            missing = set(everything) - set(await self.member.committed(everything))
            if not missing or await self._has_decided(missing):
                return
            await asyncio.sleep(_POLL)
            waited += _POLL

    async def _has_decided(self, missing: set[TopicPartition]) -> bool:
        """Return whether no peer owns one of the partitions without a committed offset."""
        try:
            peers = await self.member.partitions_of_peers()
        except RebalanceInProgressError:
            return False
        return peers is None or not missing & peers

    def _check_client(self) -> None:
        try:
            self.member.check()
        except REFUSED as error:
            self._fail(translate(error, "subscribe"))
        except KafkaError as error:
            self.failed(error)  # aiokafka retries once the error was raised

    # -- rebalances: aiokafka awaits both methods, and sends no heartbeat during the second

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Commit the finished prefixes and discard queued records, without waiting for handlers."""
        await self._guard(self._revoke())

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Determine the position of each partition, commit the start offsets that this member decides, and fetch."""
        await self._guard(self._assign(list(assigned)))

    async def _guard(self, listening: Awaitable[None]) -> None:
        """Rejoin or fail on an error of a listener: aiokafka only logs the error, and the member would consume nothing."""
        try:
            await listening
        except RebalanceInProgressError:  # the next assignment repeats this step
            self.member.request_rejoin()
        except REFUSED as error:
            self._fail(translate(error, "subscribe"))
        except (KafkaError, OSError) as error:
            logger.warning("Rebalance of %s failed; rejoining the group: %s", self.topic, translate(error, "subscribe"))
            await asyncio.sleep(self._settings.limits.reconnect_min)
            self.member.request_rejoin()
        except Exception as error:
            logger.exception("Rebalance of %s failed.", self.topic)
            self._fail(translate(error, "subscribe"))

    async def _revoke(self) -> None:
        try:
            await self._commit_finished()
        except BusError as error:
            logger.warning("Commit failed at a rebalance; records are redelivered: %s", error)
        finally:
            gone = set(self.partitions.values())
            self._fetcher.assign({})
            self._inbox.discard(lambda message: message._settlement in gone, "revoked")

    async def _assign(self, own: list[TopicPartition]) -> None:
        async with loop_timeout(self._settings.kafka.session_timeout * 0.6):
            if await self._identify():
                self._reset()
            starts = await self._starts(sorted(own))
        partitions = {
            where: self._partition(where, start.offset, Moment.noted(start.metadata)) for where, start in starts.items()
        }
        for partition in partitions.values():
            partition.ledger.committed = partition.ledger.expected
        self._fetcher.assign(partitions)
        self._joined.set()

    async def _check_topic(self) -> None:
        if await self._identify():
            self._reset()
            self.member.request_rejoin()
        elif self._identity is not None and self._identity.partitions != len(self._all_partitions()):
            await self.client.update_metadata()  # a group leader computes the assignment from it

    def _reset(self) -> None:
        """Drop the partitions of the deleted topic; those of the new topic start at their first offset."""
        self._fetcher.assign({})
        self._initial_starts = {}
        self._start = "earliest"
        self._was_recreated = True

    async def _starts(self, own: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        if self._was_recreated:  # committed offsets may belong to the deleted topic
            committed = await self._decide(own)
            self._was_recreated = not await self._are_all_assigned(own)
            return committed
        everything = sorted({*self._all_partitions(), *own})
        committed = await self.member.committed(everything)
        if not committed:
            committed = await self._first_starts(everything, own)
        missing = [where for where in own if where not in committed]
        if missing:  # new, or owned before by a member with another client
            committed |= await self._decide(missing)
        return {where: committed[where] for where in own}

    async def _are_all_assigned(self, own: list[TopicPartition]) -> bool:
        """Return false while partitions are unassigned, because the metadata of the group's leader are out of date."""
        everything = set(self._all_partitions())
        peers = await self.member.partitions_of_peers()
        return bool(everything) and (peers is None or everything <= {*own, *peers})

    async def _first_starts(
        self, everything: list[TopicPartition], own: list[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return the start offsets of the own partitions in a group without committed offsets."""
        peers = await self._peer_partitions(own)
        found = await self._resolve(sorted({*everything, *peers}), self._start)
        self._initial_starts = found | self._initial_starts
        if not own:
            return {}
        if peers[0] in own:
            return await self._decide(peers)
        return await self._decided_elsewhere(own)

    async def _decide(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Commit start offsets: those resolved when this member joined; for new partitions, the first offset."""
        new = [where for where in partitions if where not in self._initial_starts]
        starts = self._initial_starts | await self._resolve(new, "earliest")
        moment = moment_of(self._start)
        decided = {where: OffsetAndMetadata(starts[where], moment.note if moment else "") for where in partitions}
        if decided:
            await self.member.commit(decided)
        return decided

    async def _peer_partitions(self, own: list[TopicPartition]) -> list[TopicPartition]:
        """Return the peers' partitions of the topic, in order."""
        peers = await self.member.partitions_of_peers() or set()
        return sorted({*own, *(where for where in peers if where.topic == self.topic)})

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
            BusError: the commit failed; the records are redelivered.
        """
        await self._commit_finished()

    async def _commit_finished(self) -> None:
        """Commit the finished prefixes, never backwards, within 3 s.

        Raises:
            BusError: the commit failed; the records are redelivered.
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
