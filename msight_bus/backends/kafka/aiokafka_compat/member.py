"""A member of a consumer group, without aiokafka's consumer."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberMetadata
from aiokafka.protocol.admin import DescribeGroupsRequest

from msight_bus.backends.kafka.aiokafka_compat.client import Client, end_tasks

_NEVER_MS = 2**31 - 1
_MARK = b"msight_bus"


class MarkingAssignor(RoundRobinPartitionAssignor):
    """aiokafka's assignor, with a mark in each member's metadata by which members of this make recognize each other."""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), _MARK)


class Member(GroupCoordinator):
    """A member of a consumer group. Joins, and rejoins until it is closed."""

    def __init__(
        self, client: Client, topic: str, group_id: str, session_timeout: float, listener: ConsumerRebalanceListener
    ) -> None:
        """``session_timeout`` are seconds after which the group gives up a member that is silent."""
        subscription = SubscriptionState()
        subscription.register_fetch_waiters(set())
        subscription.subscribe({topic}, listener)
        client.track(topic)
        session_ms = int(session_timeout * 1000)
        super().__init__(
            client,
            subscription,
            group_id=group_id,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=session_ms,
            heartbeat_interval_ms=min(2000, session_ms // 3),
            max_poll_interval_ms=_NEVER_MS,  # a slow consumer leaves the log waiting, and stays a member
            enable_auto_commit=False,
            assignors=(MarkingAssignor,),
        )

    @property
    def background_task(self) -> asyncio.Task[None]:
        """The task that keeps the member in its group. aiokafka does not start it again when it ends with an error."""
        task: asyncio.Task[None] = self._coordination_task
        return task

    @property
    def is_joined(self) -> bool:
        """Whether a commit is made as a member: one without a generation could rewind another's."""
        return bool(self.generation > 0)

    @property
    def has_coordinator(self) -> bool:
        """Whether the broker that coordinates the group is known and reached."""
        return self.coordinator_id is not None

    def check(self) -> None:
        """Raise the error of joining: aiokafka raises it only in a fetch, and retries after that.

        Raises:
            KafkaError: the group may not be joined, for instance.
        """
        if self._coordination_task.done():
            return  # the watcher of the task handles its error
        # aiokafka starts these again at the next rebalance only.
        for task in (self._heartbeat_task, self._commit_refresh_task):
            if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
                self.request_rejoin()
        self.check_errors()

    async def committed(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """The group's committed offsets of all ``partitions``, in one request; those without one are absent."""
        found = await self.fetch_committed_offsets(partitions)
        return {partition: entry for partition, entry in found.items() if entry.offset >= 0}

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit offsets, also of partitions that belong to other members.

        Raises:
            KafkaError: not committed.
        """
        await self.commit_offsets(None, offsets)

    def _do_commit_offsets(self, assignment: Any, offsets: Any) -> asyncio.Task[None]:
        """Retrieve the error of a commit: aiokafka shields it from its caller's deadline, after which nobody waits for it."""
        task: asyncio.Task[None] = asyncio.create_task(super()._do_commit_offsets(assignment, offsets))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def partitions_of_mates(self) -> set[TopicPartition] | None:
        """The partitions of those members of the group that are of this make.

        ``None`` if the broker does not tell: a group with members of the newer protocol (KIP-848) cannot be described so.

        Raises:
            RebalanceInProgressError: a rebalance is under way.
            KafkaError: no answer.
        """
        response = await self._send_req(DescribeGroupsRequest([self.group_id]))
        ((code, _, state, _, _, members, *_),) = response.groups
        if state in ("PreparingRebalance", "CompletingRebalance"):
            raise kafka_errors.RebalanceInProgressError(state)
        if code or state != "Stable":
            return None
        partitions: set[TopicPartition] = set()
        for _, _, _, metadata, assignment in members:
            try:
                if ConsumerProtocol.METADATA.decode(metadata).user_data == _MARK:
                    partitions.update(ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions())
            except (ValueError, struct.error):
                continue  # of another make
        return partitions

    async def aclose(self, leave_within: float) -> None:
        """End, and leave the group if the broker answers within ``leave_within`` seconds."""
        if not self._closing.done():
            self._closing.set_result(None)
        await end_tasks((self._coordination_task, self._heartbeat_task, self._commit_refresh_task))
        leaving = asyncio.ensure_future(self._maybe_leave_group())
        await asyncio.wait((leaving,), timeout=leave_within)
        await end_tasks((leaving,))
