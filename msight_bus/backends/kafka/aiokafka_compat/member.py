"""Membership of a consumer group, without aiokafka's consumer."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
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
from aiokafka.protocol.group import LeaveGroupRequest

from msight_bus.backends.kafka.aiokafka_compat.added_requests import error_codes, with_instance_id
from msight_bus.backends.kafka.aiokafka_compat.client import Client, end_tasks
from msight_bus.backends.kafka.errors import FencedInstanceIdError
from msight_bus.tasks import await_shared

_NEVER_MS = 2**31 - 1
_MARK = b"msight_bus"

_COMMITTED_AT_ONCE = 1000
"""Maximum number of partitions of a request to commit. The broker writes the offsets of a request as one batch and refuses a
batch over ``max.message.bytes`` of ``__consumer_offsets``, by default 1 MiB; a partition takes at most about 600 bytes."""

_missing: ContextVar[set[TopicPartition]] = ContextVar("missing")
"""The partitions that the broker did not find in the commit that runs in this context or in the task of its request."""

_RETRY_AFTER = 0.1
"""Seconds between two attempts to commit."""


_REBALANCED = (
    kafka_errors.UnknownMemberIdError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
)


class _OutdatedAssignmentError(Exception):
    """A static member was given the assignment of its predecessor, which does not fit its topics."""


class MarkingAssignor(RoundRobinPartitionAssignor):
    """Round-robin assignor whose user data marks the members that run this library.

    A publisher without keys uses partitions of the same number in all topics. aiokafka's assignor gives these to one member if
    all topics have the same number of partitions; this assignor starts each topic at the next member with the fewest.
    """

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Return the assignment of each member; ``members``: metadata by member id, which contain the subscribed topics."""
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

    _group_subscription: Any  # the topics whose partitions the member watches as the leader of its group; else None

    def __init__(
        self,
        client: Client,
        topics: Iterable[str],
        group_id: str,
        session_timeout: float,
        listener: ConsumerRebalanceListener,
        *,
        instance_id: str | None,
        before_join: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            client: the connections of this member; not shared.
            topics: the topics to subscribe to.
            group_id: the group to join.
            session_timeout: seconds without a heartbeat after which the coordinator removes the member.
            listener: called at each rebalance.
            instance_id: the ``group.instance.id`` of a static member; ``None``: the member is not static, and leaves the group at
                its end.
            before_join: awaited before each attempt to join; can call `subscribe`.
        """
        self._before_join = before_join
        self._instance_id = instance_id
        self._is_fenced = False
        self._was_assigned = False
        subscription = SubscriptionState()
        subscription.register_fetch_waiters(set())
        subscription.subscribe(set(topics), listener)
        session_ms = int(session_timeout * 1000)
        super().__init__(
            client,
            subscription,
            group_id=group_id,
            group_instance_id=instance_id,
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
        if not subscription.active:
            return None
        try:
            return await super().ensure_active_group(subscription, prev_assignment)
        except _OutdatedAssignmentError:  # a member that leaves and joins again causes a rebalance
            with suppress(kafka_errors.KafkaError):
                await self._send_req(LeaveGroupRequest(self.group_id, self.member_id))
            self.reset_generation()
            return None

    @property
    def background_task(self) -> asyncio.Task[None]:
        """The task that joins the group and rejoins. aiokafka does not restart it after an error."""
        task: asyncio.Task[None] = self._coordination_task
        return task

    @property
    def is_joined(self) -> bool:
        """Whether the member has a generation: a commit without a generation could rewind the commit of another member."""
        return bool(self.generation > 0)

    @property
    def has_coordinator(self) -> bool:
        """Whether the group's coordinator is known and connected."""
        return self.coordinator_id is not None

    def check(self) -> None:
        """Raise the error of the last join, which aiokafka's consumer raises in a fetch; aiokafka then joins again.

        Raises:
            FencedInstanceIdError: another member has started with the same ``group.instance.id``.
            KafkaError: the member could not join, for example without permission.
        """
        self._check_fenced()
        if self._coordination_task.done():
            return  # the consumer watches `background_task` and handles its error
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
        """Commit offsets, including those of partitions of other members; wait for partitions that do not exist.

        Raises:
            KafkaError: the offsets were not committed.
        """
        while missing := await self.commit_existing(offsets):
            offsets = {where: offsets[where] for where in missing}
            await asyncio.sleep(_RETRY_AFTER)

    async def commit_existing(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> set[TopicPartition]:
        """Commit offsets, including those of partitions of other members, and return the partitions that do not exist.

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
                await self._commit({where: offsets[where] for where in some})
        finally:
            _missing.reset(token)
        return missing

    async def _commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets; retry while the coordinator is not available. A request that was sent is not cancelled.

        Raises:
            KafkaError: the offsets were not committed.
        """
        while True:
            await self.ensure_coordinator_known()
            try:
                async with self._commit_lock:
                    request = asyncio.create_task(self._do_commit_offsets(None, offsets))
                    # Mark the error as retrieved: after a cancellation, no caller waits for the request.
                    request.add_done_callback(lambda done: done.cancelled() or done.exception())
                    await await_shared(request)
            except _REBALANCED as error:
                raise kafka_errors.CommitFailedError(
                    "the partitions may have been assigned to another member"
                ) from error
            except kafka_errors.KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(_RETRY_AFTER)
            else:
                return

    def _check_fenced(self) -> None:
        if self._is_fenced:
            raise FencedInstanceIdError(self.group_id, self._instance_id)

    async def _send_req(self, request: Any) -> Any:
        self._check_fenced()
        if self._instance_id is None:
            response = await super()._send_req(request)
        else:
            response = await super()._send_req(with_instance_id(request, self._instance_id))
            self._is_fenced |= FencedInstanceIdError.errno in error_codes(request, response)
            self._check_fenced()
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
        """Raise the error of a response, if any: aiokafka takes a response without offsets for that of a group without commits.

        Raises:
            KafkaError: the response has an error code; retriable if the coordinator has moved or is loading the group.
        """
        error = kafka_errors.for_code(code)
        if error in (kafka_errors.NotCoordinatorForGroupError, kafka_errors.GroupCoordinatorNotAvailableError):
            self.coordinator_dead()
        if code:
            raise error(self.group_id)

    async def _on_join_complete(self, generation: int, member_id: str, protocol: str, assignment: bytes) -> None:
        """Take over an assignment.

        Raises:
            _OutdatedAssignmentError: a static member was given an assignment that does not fit its topics.
        """
        if self._instance_id is not None:
            if await self._is_outdated(assignment):
                raise _OutdatedAssignmentError
            if self._group_subscription is None:
                # The coordinator does not report to a restarted leader that it leads the group (before KIP-814). A leader has to
                # join again when partitions are added; for other members, that has no effect.
                self._group_subscription = self.topics
                self._metadata_snapshot = self._get_metadata_snapshot()
        await super()._on_join_complete(generation, member_id, protocol, assignment)

    async def _is_outdated(self, assignment: bytes) -> bool:
        """Return whether partitions of a topic are assigned that is not subscribed to, or, at the first assignment, partitions
        of a subscribed topic to no member.

        A static member that was restarted gets the last assignment of its predecessor, although it may subscribe to other topics.
        """
        own = ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions()
        if any(where.topic not in self.topics for where in own):
            return True
        if self._was_assigned:
            return False
        self._was_assigned = True
        try:
            members = await self._assignments()
        except kafka_errors.KafkaError:
            return False
        taken = {where for _, partitions in members or () for where in partitions}
        everything = {
            TopicPartition(topic, number) for topic in self.topics for number in self._client.partitions(topic)
        }
        return members is not None and not everything <= taken

    async def partitions_of_peers(self) -> set[TopicPartition] | None:
        """Return the partitions of the group's members that run this library.

        ``None`` if the broker does not report them, as for a group with members of the consumer protocol of KIP-848.

        Raises:
            RebalanceInProgressError: a rebalance is in progress.
            KafkaError: the coordinator did not respond, or has moved.
        """
        members = await self._assignments()
        return None if members is None else {where for is_peer, own in members if is_peer for where in own}

    async def _assignments(self) -> list[tuple[bool, list[TopicPartition]]] | None:
        """Return for each member of the group whether it runs this library, and its partitions; see `partitions_of_peers`."""
        response = await self._send_req(DescribeGroupsRequest([self.group_id]))
        ((code, _, state, _, _, members, *_),) = response.groups
        if state in ("PreparingRebalance", "CompletingRebalance"):
            raise kafka_errors.RebalanceInProgressError(state)
        if kafka_errors.for_code(code).retriable:
            self._raise(code)
        if code or state != "Stable":
            return None
        found = []
        for _, _, _, metadata, assignment in members:
            try:
                is_peer = ConsumerProtocol.METADATA.decode(metadata).user_data == _MARK
                found.append((is_peer, ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions()))
            except (ValueError, struct.error):
                continue  # a member of another client library
        return found

    async def aclose(self, leave_within: float) -> None:
        """End the member's tasks and leave the group, waiting at most ``leave_within`` seconds for the coordinator."""
        if not self._closing.done():
            self._closing.set_result(None)
        await end_tasks((self._coordination_task, self._heartbeat_task, self._commit_refresh_task))
        leaving = asyncio.ensure_future(self._maybe_leave_group())
        await asyncio.wait((leaving,), timeout=leave_within)
        await end_tasks((leaving,))
