"""Membership of a consumer group, without aiokafka's consumer."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocol,
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from msight_bus.backends.kafka.aiokafka_compat.client import Client, end_tasks

_NEVER_MS = 2**31 - 1
_MARK = b"msight_bus"

_COMMITTED_AT_ONCE = 1000
"""Maximum number of partitions of a request to commit. The broker writes the offsets of a request as one batch and refuses a
batch over ``max.message.bytes`` of ``__consumer_offsets``, by default 1 MiB; a partition takes at most about 600 bytes."""

_missing: ContextVar[set[TopicPartition]] = ContextVar("missing")
"""The partitions that the broker did not find in the commit that runs in this context, also in the task that aiokafka shields."""

_RETRY_AFTER = 0.1
"""Seconds between two commits of partitions that do not exist yet."""


class MarkingAssignor(RoundRobinPartitionAssignor):
    """Round-robin assignor whose user data marks the members that run this library.

    A publisher without keys uses partitions of the same number in all topics. aiokafka's assignor gives these to one member if
    all topics have the same number of partitions; this assignor starts each topic at the next member with the fewest.
    """

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Return the assignment of each member; ``members`` have their subscriptions."""
        subscribers: dict[str, list[str]] = {}
        for member in sorted(members):
            for topic in members[member].subscription:
                subscribers.setdefault(topic, []).append(member)
        owned: dict[str, dict[str, list[int]]] = {member: {} for member in members}
        counts = dict.fromkeys(members, 0)
        turn = 0
        for topic in sorted(subscribers):
            those = subscribers[topic]
            turn = min(range(turn, turn + len(those)), key=lambda at: counts[those[at % len(those)]])
            for at, partition in enumerate(sorted(cluster.partitions_for_topic(topic) or ()), turn):
                member = those[at % len(those)]
                owned[member].setdefault(topic, []).append(partition)
                counts[member] += 1
            turn += 1
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, list(topics.items()), b"")
            for member, topics in owned.items()
        }

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), _MARK)


class Member(GroupCoordinator):
    """A member of a consumer group. Joins, and rejoins after each rebalance, until closed."""

    def __init__(
        self,
        client: Client,
        topics: Iterable[str],
        group_id: str,
        session_timeout: float,
        listener: ConsumerRebalanceListener,
        *,
        before_join: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            client: the connections of this member; not shared.
            topics: the topics to subscribe to.
            group_id: the group to join.
            session_timeout: seconds without a heartbeat after which the coordinator removes the member.
            listener: called at each rebalance.
            before_join: awaited before each attempt to join; can call `subscribe`.
        """
        self._before_join = before_join
        subscription = SubscriptionState()
        subscription.register_fetch_waiters(set())
        subscription.subscribe(set(topics), listener)
        session_ms = int(session_timeout * 1000)
        super().__init__(
            client,
            subscription,
            group_id=group_id,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=session_ms,
            heartbeat_interval_ms=min(2000, session_ms // 3),
            max_poll_interval_ms=_NEVER_MS,  # a slow consumer stays a member; its records stay in the log
            enable_auto_commit=False,
            assignors=(MarkingAssignor,),
        )

    @property
    def topics(self) -> frozenset[str]:
        """The topics of the subscription."""
        topics: frozenset[str] = self._subscription.topics
        return topics

    def subscribe(self, topics: Iterable[str]) -> None:
        """Replace the topics of the subscription, and rejoin the group."""
        self._client.set_topics(topics)
        self._subscription.subscribe(set(topics), self._subscription.listener)

    async def ensure_active_group(self, subscription: Any, prev_assignment: Any) -> Any:
        """Join the group; return ``None`` to be called again, because the subscription was replaced or the join failed."""
        await self._before_join()
        return await super().ensure_active_group(subscription, prev_assignment) if subscription.active else None

    @property
    def background_task(self) -> asyncio.Task[None]:
        """The task that joins the group and rejoins. aiokafka does not restart it after an error."""
        task: asyncio.Task[None] = self._coordination_task
        return task

    @property
    def is_joined(self) -> bool:
        """Whether the member has a generation: a commit without one could rewind the commit of another member."""
        return bool(self.generation > 0)

    @property
    def has_coordinator(self) -> bool:
        """Whether the group's coordinator is known and connected."""
        return self.coordinator_id is not None

    def check(self) -> None:
        """Raise the error of the last join, which aiokafka raises only in a fetch and retries afterwards.

        Raises:
            KafkaError: the member could not join, for example without permission.
        """
        if self._coordination_task.done():
            return  # whoever watches `background_task` handles its error
        # aiokafka restarts these tasks only at the next rebalance.
        for task in (self._heartbeat_task, self._commit_refresh_task):
            if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
                self.request_rejoin()
        self.check_errors()

    async def committed(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return the group's committed offsets of ``partitions``, without partitions that have none.

        Raises:
            KafkaError: the coordinator did not respond.
        """
        found = await self.fetch_committed_offsets(partitions)
        return {partition: entry for partition, entry in found.items() if entry.offset >= 0}

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets, also for partitions of other members; wait for partitions that do not exist.

        Raises:
            KafkaError: the offsets were not committed.
        """
        while missing := await self.commit_existing(offsets):
            offsets = {where: offsets[where] for where in missing}
            await asyncio.sleep(_RETRY_AFTER)

    async def commit_existing(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> set[TopicPartition]:
        """Commit offsets, also for partitions of other members, and return the partitions that do not exist.

        aiokafka commits all partitions again until it is cancelled if one of them is of a deleted topic.

        Raises:
            KafkaError: the offsets were not committed.
        """
        missing: set[TopicPartition] = set()
        token = _missing.set(missing)
        try:
            everything = list(offsets)
            for begin in range(0, len(everything), _COMMITTED_AT_ONCE):
                some = everything[begin : begin + _COMMITTED_AT_ONCE]
                await self.commit_offsets(None, {where: offsets[where] for where in some})
        finally:
            _missing.reset(token)
        return missing

    async def _send_req(self, request: Any) -> Any:
        response = await super()._send_req(request)
        if isinstance(request, OffsetFetchRequest):
            self._raise(getattr(response, "error_code", 0))
        if isinstance(request, OffsetCommitRequest):
            unknown, missing = kafka_errors.UnknownTopicOrPartitionError.errno, _missing.get()
            for topic, partitions in response.topics:
                missing.update(TopicPartition(topic, number) for number, code in partitions if code == unknown)
            response.topics = [
                (topic, [(number, code) for number, code in partitions if code != unknown])
                for topic, partitions in response.topics
            ]
        return response

    def _raise(self, code: int) -> None:
        """Raise the error of a response, if any. aiokafka takes an error instead of committed offsets for a group that has none.

        Raises:
            KafkaError: the response has an error code; retriable if the coordinator has moved or is loading the group.
        """
        error = kafka_errors.for_code(code)
        if error in (kafka_errors.NotCoordinatorForGroupError, kafka_errors.GroupCoordinatorNotAvailableError):
            self.coordinator_dead()
        if code:
            raise error(self.group_id)

    def _do_commit_offsets(self, assignment: Any, offsets: Any) -> asyncio.Task[None]:
        """Retrieve the error of a commit that aiokafka shields from the caller's cancellation: nobody awaits it afterwards."""
        task: asyncio.Task[None] = asyncio.create_task(super()._do_commit_offsets(assignment, offsets))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def partitions_of_peers(self) -> set[TopicPartition] | None:
        """Return the partitions of the group's members that run this library.

        ``None`` if the broker does not report them, as for a group with members of the consumer protocol of KIP-848.

        Raises:
            RebalanceInProgressError: a rebalance is in progress.
            KafkaError: the coordinator did not respond, or has moved.
        """
        response = await self._send_req(DescribeGroupsRequest([self.group_id]))
        ((code, _, state, _, _, members, *_),) = response.groups
        if state in ("PreparingRebalance", "CompletingRebalance"):
            raise kafka_errors.RebalanceInProgressError(state)
        if kafka_errors.for_code(code).retriable:
            self._raise(code)
        if code or state != "Stable":
            return None
        partitions: set[TopicPartition] = set()
        for _, _, _, metadata, assignment in members:
            try:
                if ConsumerProtocol.METADATA.decode(metadata).user_data == _MARK:
                    partitions.update(ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions())
            except (ValueError, struct.error):
                continue  # a member of another client library
        return partitions

    async def aclose(self, leave_within: float) -> None:
        """End the member's tasks and leave the group, waiting at most ``leave_within`` seconds for the coordinator."""
        if not self._closing.done():
            self._closing.set_result(None)
        await end_tasks((self._coordination_task, self._heartbeat_task, self._commit_refresh_task))
        leaving = asyncio.ensure_future(self._maybe_leave_group())
        await asyncio.wait((leaving,), timeout=leave_within)
        await end_tasks((leaving,))
