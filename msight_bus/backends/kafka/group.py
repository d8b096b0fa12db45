"""The consumer of a subscription with a group: rebalances and commits.

One member must decide the start offsets of all uncommitted partitions; otherwise records published between the decisions of two
members are skipped. Of the members that run this library (the peers), the owner of the lowest partition decides for all peers,
in one commit. Members that run another client decide for their own partitions, and no peer waits for them.

The start offset of a partition without a committed offset:

- The group has committed offsets of the topic's other partitions: the partition is new, and its owner commits its first offset.
- The group has none of the topic, and the topic is given by name or the group has no committed offsets at all: the
  subscription's ``start``, or the earliest record if the topic was found later.
- The topic matches a pattern, and the group has committed offsets of other topics: its earliest record.

Every member subscribes to all topics that exist and match, and rejoins when these change.

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
from msight_bus.backends.kafka.errors import REFUSED, FencedInstanceIdError, translate
from msight_bus.backends.kafka.start_offsets import Moment, list_offsets, moment_of
from msight_bus.errors import BusError, ConnectionLostError, fresh
from msight_bus.patterns import named

logger = logging.getLogger("msight_bus")

_POLL = 0.05
"""Seconds between two checks of the membership or the committed offsets."""

_DECIDES_WITHIN = 5.0
"""Seconds to wait for the start offsets of another peer."""

_JOIN_WITHIN = 60.0
"""Minimum deadline, in seconds, for joining. The coordinator waits for a crashed member until its session expires: 45 s with the
defaults of Kafka's Java clients."""

_WARNING_INTERVAL = 5.0
"""Seconds between two WARNINGs while joining."""

_COMMIT_WITHIN = 3.0
"""Deadline of a commit, in seconds."""

_COMPARE_EVERY = 10.0
"""Seconds between two comparisons of own and other partitions."""

_NAMED = 10
"""Maximum number of partitions that a log line names."""

_MANY = 100
"""Number of records in other partitions at which a member without records logs a WARNING; fewer can be chance."""


async def _nothing() -> None:
    pass


class GroupConsumer(KafkaConsumer, ConsumerRebalanceListener):
    """The consumer of a subscription with ``group_id``."""

    def __init__(self, group_id: str, *arguments: Any) -> None:
        """
        Args:
            group_id: the consumer group.
            arguments: the arguments of `KafkaConsumer`.
        """
        super().__init__(*arguments)
        self._group_id = group_id
        self._member: Member | None = None
        self._joined = asyncio.Event()
        self._recreated: set[str] = set()
        # topics of assigned partitions that were deleted before their start was known
        self._without_start: set[str] = set()
        # start offsets when this member joined, also of partitions whose owner runs another client and commits nothing
        self._initial_starts: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Join the group and wait until the start offset of every partition is committed.

        Raises:
            ConnectionLostError: the coordinator did not respond, or the group did not accept the member, in time.
            KafkaError, BusError: the user may not read the topic or join the group.
        """
        await self._connect()
        self._member = Member(
            self.client,
            self.topics.names,
            self._group_id,
            self._settings.kafka.session_timeout,
            self,
            instance_id=self._selection.instance_id,
            before_join=self._match if self._selection.patterns else _nothing,
        )
        fetching = self._begin_fetching(self.client.background_task, self._member.background_task)
        await self._join(fetching)
        await self._wait_for_peers()
        self._run(self._commit_regularly(), "committer")
        self._run(self._watch_topics(), "topics")
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
            topics = {where.topic for where in self.partitions}
            shared = [where for where in self._all_partitions() if where.topic in topics]
            if len(shared) == len(self.partitions):
                continue
            try:
                ends = await list_offsets(self.client, shared, LATEST, self._isolation)
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
            "key, and one publisher's messages without a key, are written to one partition. To share them, publish with more "
            "keys, or spread messages without a key at the publisher: "
            "publisher(spread=True), NodeConfig(spread=True) or MSIGHT_KAFKA_UNKEYED=spread.",
            self._group_id,
            self.name,
            named(list(map(self._shown, sorted(own))), _NAMED),
            named([f"{self._shown(where)}: {others[where]} records" for where in sorted(others)], _NAMED),
        )

    def _shown(self, where: TopicPartition) -> str:
        return f"{where.topic}-{where.partition}" if self._selection.many else str(where.partition)

    async def _join(self, fetching: asyncio.Task[None]) -> None:
        """Wait for the first assignment.

        Raises:
            ConnectionLostError: the coordinator did not respond within ``connect_timeout`` seconds, or did not accept the member.
            BusError: the coordinator refused.
        """
        limits, clock = self._settings.limits, asyncio.get_running_loop().time
        begun = reached = clock()
        within = max(_JOIN_WITHIN, limits.connect_timeout + 2 * self._settings.kafka.session_timeout)
        told = begun + _WARNING_INTERVAL
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
                        f"Kafka named no coordinator that can be reached for the group {self._group_id!r} within "
                        f"{limits.connect_timeout:g} s (MSIGHT_CONNECT_TIMEOUT). Check that offsets.topic.replication.factor is "
                        "not larger than the number of brokers, and that no broker with partitions of __consumer_offsets is down."
                    )
                if now - begun >= within:
                    raise ConnectionLostError(
                        f"The group {self._group_id!r} did not accept a member for {self.name!r} within {within:g} s. "
                        "Check its other members: `kafka-consumer-groups.sh --describe --members`."
                    )
                if now >= told:
                    told = now + _WARNING_INTERVAL
                    logger.warning(
                        "Joining the group %s for %s: waiting for %.0f s, at most %g s. The coordinator waits for a crashed "
                        "member until its session expires.",
                        self._group_id,
                        self.name,
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
        except KafkaError as error:
            if error.retriable or isinstance(error, RebalanceInProgressError):
                return False
            raise
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
        """Commit the acknowledged prefixes and discard queued records, without waiting for handlers."""
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
            if self.leave_out(error):
                self.member.request_rejoin()
            else:
                self._fail(translate(error, "subscribe"))
        except (KafkaError, OSError) as error:
            logger.warning("Rebalance of %s failed; rejoining the group: %s", self.name, translate(error, "subscribe"))
            await asyncio.sleep(self._settings.limits.reconnect_min)
            self.member.request_rejoin()
        except Exception as error:
            logger.exception("Rebalance of %s failed.", self.name)
            self._fail(translate(error, "subscribe"))

    async def _revoke(self) -> None:
        try:
            await self.commit()
        except BusError as error:
            logger.warning("Commit failed at a rebalance; records are redelivered: %s", error)
        finally:
            self._discard()

    async def _assign(self, own: list[TopicPartition]) -> None:
        async with loop_timeout(self._settings.kafka.session_timeout * 0.6):
            self._reset(await self._find_recreated())
            starts = await self._starts(sorted(own))
        partitions = {
            where: self._partition(where, start.offset, Moment.noted(start.metadata)) for where, start in starts.items()
        }
        for partition in partitions.values():
            partition.ledger.committed = partition.ledger.expected
        self._fetcher.assign(partitions)
        self._joined.set()

    async def _check_topics(self) -> None:
        recreated = await self._find_recreated()
        self._reset(recreated)
        if set(self.topics.names) != self.member.topics:
            self.member.subscribe(self.topics.names)
        elif recreated or any(map(self.topics.was_found, self._without_start)):
            self.member.request_rejoin()
        elif set(self.topics.partitions()) - set(self._all_partitions()):
            await self.client.update_metadata()  # a group leader computes the assignment from it

    async def _match(self) -> None:
        """Subscribe to the topics that match now, so that all members join with the same topics."""
        self._reset(await self._find_recreated())
        if self._member is not None and set(self.topics.names) != self._member.topics:
            self._member.subscribe(self.topics.names)

    def _reset(self, topics: set[str]) -> None:
        """Drop the partitions of deleted topics; those of the new topics of these names start at their first offset."""
        if topics:
            self._fetcher.assign({where: each for where, each in self.partitions.items() if where.topic not in topics})
            self._initial_starts = {
                where: at for where, at in self._initial_starts.items() if where.topic not in topics
            }
            self._recreated |= topics

    async def _starts(self, own: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        anew = self._recreated
        # commits may be of the deleted topic
        decided = await self._decide([where for where in own if where.topic in anew])
        if anew:
            self._recreated = anew & await self._topics_not_assigned(own)
        everything = sorted(where for where in {*self._all_partitions(), *own} if where.topic not in anew)
        committed = decided | await self.member.committed(everything)
        begun = {where.topic for where in committed}
        first = [
            where
            for where in everything
            if where.topic not in begun and (not begun - anew or self.topics.is_given(where.topic))
        ]
        if first:
            topics = {where.topic for where in first}
            committed |= await self._first_starts(first, [where for where in own if where.topic in topics])
        missing = [where for where in own if where not in committed]
        if missing:  # new, or owned before by a member with another client
            committed |= await self._decide(missing)
        self._without_start = {where.topic for where in own if where not in committed}
        return {where: committed[where] for where in own if where in committed}

    async def _topics_not_assigned(self, own: list[TopicPartition]) -> set[str]:
        """Return topics with unassigned partitions, because the metadata of the group's leader are out of date."""
        everything = set(self.topics.partitions())
        peers = await self.member.partitions_of_peers()
        return set() if peers is None else {where.topic for where in everything - {*own, *peers}}

    async def _first_starts(
        self, first: list[TopicPartition], own: list[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return the start offsets of the own partitions of topics in which the group has no committed offset."""
        peers = await self._peer_partitions(own, {where.topic for where in first})
        unresolved = sorted({*first, *peers} - self._initial_starts.keys())
        later = [where for where in unresolved if self.topics.is_later(where.topic)]
        existing = [where for where in unresolved if not self.topics.is_later(where.topic)]
        self._initial_starts |= await self._resolve(existing, self._selection.start)
        self._initial_starts |= await self._resolve(later, "earliest")
        if not own:
            return {}
        if peers[0] in own:
            return await self._decide(peers)
        return await self._decided_elsewhere(own)

    async def _decide(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Commit start offsets: those resolved when this member joined; for new partitions, the first offset."""
        new = [where for where in partitions if where not in self._initial_starts]
        starts = self._initial_starts | await self._resolve(new, "earliest")
        moment = moment_of(self._selection.start)
        note = moment.note if moment else ""
        decided = {
            where: OffsetAndMetadata(starts[where], "" if self.topics.is_later(where.topic) else note)
            for where in partitions
            if where in starts
        }
        if decided:
            await self.member.commit(decided)
        return decided

    async def _peer_partitions(self, own: list[TopicPartition], topics: set[str]) -> list[TopicPartition]:
        """Return the own partitions and those of the peers on these topics, sorted."""
        peers = await self.member.partitions_of_peers() or set()
        return sorted({*own, *(where for where in peers if where.topic in topics)})

    async def _decided_elsewhere(self, own: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        waited = 0.0
        while True:
            committed = await self.member.committed(own)
            if all(where in committed or self._is_gone(where) for where in own) or waited >= _DECIDES_WITHIN:
                return committed
            await asyncio.sleep(_POLL)
            waited += _POLL

    # -- commits

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.kafka.commit_interval)
            try:
                await self.commit()
            except BusError as error:
                self.failed(error)

    async def commit(self) -> None:
        """Commit the acknowledged prefixes, never backwards, within 3 s. A deleted topic is tried again at the next commit.

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
                missing = await self._member.commit_existing(
                    {where: OffsetAndMetadata(at, "") for where, at in finished.items()}
                )
        except TimeoutError as error:
            raise BusError(
                f"Kafka did not confirm a commit of {self.name!r} within {within:.2g} s; its records may be redelivered."
            ) from error
        except FencedInstanceIdError as error:
            self._fail(translate(error, "subscribe"))
            return
        except KafkaError as error:
            raise translate(error, "subscribe") from error
        for where in finished.keys() - missing:
            ledgers[where].committed = finished[where]

    async def _leave(self, within: float) -> None:
        member, self._member = self._member, None
        if member is not None:
            await member.aclose(within)
