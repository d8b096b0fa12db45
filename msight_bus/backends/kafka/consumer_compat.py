"""The private names of aiokafka that a consumer needs, in one place, with a check of its version."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Iterable
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberMetadata
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.fetch import FetchRequest

from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.aiokafka_compat import AIOKAFKA, Client
from msight_bus.backends.kafka.partition_reader import ListMaker, PartitionReader
from msight_bus.backends.kafka.topic_id import TopicIdentity, TopicIdentityRequest, read_identity
from msight_bus.tasks import start_with_grace


class Consumer(AIOKafkaConsumer):
    """aiokafka's consumer, with a `Client`."""

    def __init__(self, client: Client, **options: Any) -> None:
        super().__init__(**options)
        self._client = client


async def start_consumer(consumer: AIOKafkaConsumer) -> None:
    """Start a consumer; aiokafka leaks what it has opened when it is cancelled there."""
    await start_with_grace(consumer.start())


def check_consumers() -> None:
    """Log a WARNING if the installed aiokafka is not a tested version.

    Raises:
        BusError: it lacks a private attribute that this module uses.
    """
    AIOKAFKA.check(
        (AIOKafkaConsumer, ("getmany", "seek")),
        (Fetcher, ("_proc_fetch_request", "_fetch_requests_routine")),
        (FetchResult, ("check_assignment", "_update_position", "getall")),
        (
            GroupCoordinator,
            (
                "_send_req",
                "_do_heartbeat",
                "_maybe_leave_group",
                "_perform_assignment",
                "request_rejoin",
                "_do_commit_offsets",
            ),
        ),
        (GroupCoordinator, ("check_errors", "commit_offsets", "fetch_committed_offsets")),
    )


def is_member(consumer: AIOKafkaConsumer) -> bool:
    """Whether a commit is made as a member of the group: one without a generation could rewind another's."""
    return consumer._coordinator is not None and consumer._coordinator.generation > 0


def check_group(consumer: AIOKafkaConsumer) -> None:
    """Raise what the group's coordinator could not do; the client tells it only to whoever fetches.

    Raises:
        KafkaError: the group may not be joined, for instance.
    """
    coordinator = consumer._coordinator
    if coordinator._coordination_task.done():
        return  # KafkaFeed watches it
    # aiokafka starts these again at the next rebalance only.
    for task in (coordinator._heartbeat_task, coordinator._commit_refresh_task):
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            coordinator.request_rejoin()
    coordinator.check_errors()


def rejoin(consumer: AIOKafkaConsumer) -> None:
    """Join the group again, as soon as a rebalance that is under way is over."""
    consumer._coordinator.request_rejoin()


def renew_metadata(consumer: AIOKafkaConsumer) -> None:
    """Ask the cluster anew which partitions the topics have, soon."""
    consumer._client.force_metadata_update()


def background_tasks(client: AIOKafkaConsumer) -> list[asyncio.Task[Any]]:
    """The tasks that a started consumer needs: they renew metadata, fetch, and coordinate the group.

    aiokafka starts none of them again when it ends with an error, and reports at most the last to whoever fetches.
    """
    tasks = [client._client._sync_task, client._fetcher._fetch_task]
    tasks += [getattr(client._coordinator, name, None) for name in ("_coordination_task", "_reset_committed_task")]
    return [task for task in tasks if task is not None]


_MARK = b"msight_bus"


class MarkingAssignor(RoundRobinPartitionAssignor):
    """aiokafka's assignor, with a mark in each member's metadata by which members of this make know each other."""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), _MARK)


async def partitions_of_mates(consumer: AIOKafkaConsumer) -> set[TopicPartition] | None:
    """The partitions of those members of the group that are of this make.

    ``None`` if the broker does not tell: a group with members of the newer protocol (KIP-848) cannot be described in this way.

    Raises:
        RebalanceInProgressError: a rebalance is under way.
        KafkaError: no answer.
    """
    coordinator = consumer._coordinator
    response = await coordinator._send_req(DescribeGroupsRequest([coordinator.group_id]))
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


def has_coordinator(consumer: AIOKafkaConsumer) -> bool:
    """Whether the group's coordinator is known and reached."""
    return consumer._coordinator.coordinator_id is not None


async def topic_identity(consumer: AIOKafkaConsumer, topic: str, within: float) -> TopicIdentity | None:
    """The identity of a topic as the first broker knows it that answers; ``None`` if it does not exist.

    Args:
        within: seconds for all brokers together.

    Raises:
        KafkaError: no answer.
        NotImplementedError: the brokers are older than Kafka 2.8 and have no ids.
    """
    client = consumer._client
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    problem: Exception = kafka_errors.NodeNotReadyError("No broker is known.")
    for node, share in in_turn(random.sample(nodes, len(nodes)), within):
        try:
            async with asyncio.timeout(share):
                return read_identity(await client.send(node, TopicIdentityRequest(topic)), topic)
        except (kafka_errors.KafkaError, OSError) as error:
            problem = error
    raise problem


def log_end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> tuple[int, int] | None:
    """The end of a partition's log and its last stable offset, as the last fetch told; ``None`` before the first."""
    subscription = consumer._subscription.subscription
    if subscription is None or subscription.assignment is None or partition not in subscription.assignment.tps:
        return None
    state = subscription.assignment.state_value(partition)
    return None if state.highwater is None or state.lso is None else (state.highwater, state.lso)


async def committed_offsets(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """The group's committed offsets of all ``partitions``, in one request; those without one are absent."""
    found = await consumer._coordinator.fetch_committed_offsets(partitions)
    return {partition: entry for partition, entry in found.items() if entry.offset >= 0}


def retrieve_commits(consumer: AIOKafkaConsumer) -> None:
    """Retrieve the errors of commits that nobody waits for any more. aiokafka shields a commit from its caller's deadline, and
    asyncio would log its error as never retrieved."""
    coordinator = consumer._coordinator
    commit = coordinator._do_commit_offsets

    def retrieved(*arguments: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(commit(*arguments))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    coordinator._do_commit_offsets = retrieved


async def commit_any(consumer: AIOKafkaConsumer, offsets: dict[Any, Any]) -> None:
    """Commit offsets of partitions that may belong to other members."""
    await consumer._coordinator.commit_offsets(consumer._subscription.subscription.assignment, offsets)


class _FetchTap:
    """A consumer's client that keeps each fetched partition's bytes, which aiokafka's own classes do not give away."""

    def __init__(self, client: Client, maker: ListMaker) -> None:
        self._client = client
        self._maker = maker
        self.fetched: dict[TopicPartition, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        try:
            response = await self._client.send(node_id, request, **options)
        except kafka_errors.KafkaError:
            self._maker.fetch_failed()
            raise
        if isinstance(request, FetchRequest):
            self._look_for_errors(response)
            # The fetcher takes them before it awaits anything again.
            self.fetched = {
                TopicPartition(topic, number): data or b""
                for topic, partitions in response.topics
                for number, *_, data in partitions
            }
        return response

    def _look_for_errors(self, response: Any) -> None:
        for _, partitions in response.topics:
            if any(code == kafka_errors.UnknownTopicOrPartitionError.errno for _, code, *_ in partitions):
                self._maker.topic_missing()


class _Fetched(dict[Any, Any]):
    """The fetcher's table of what has come, with a `PartitionReader` in place of each ``PartitionRecords``: that makes a
    ``ConsumerRecord`` of each record in several calls, which is more than half of what a fetch costs."""

    def __init__(self, results: dict[Any, Any], tap: _FetchTap, maker: ListMaker) -> None:
        super().__init__(results)
        self._tap = tap
        self._maker = maker

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            result._partition_records = self._reader(partition, result._partition_records)
        super().__setitem__(partition, result)

    def _reader(self, partition: TopicPartition, records: PartitionRecords) -> PartitionReader:
        # it refers back, and would keep the whole fetch until the garbage collector comes
        records._records_iterator = None
        committed_only = records._isolation_level == READ_COMMITTED
        return PartitionReader(
            partition.partition,
            self._tap.fetched.pop(partition),
            records.next_fetch_offset,
            records._aborted_transactions if committed_only else (),
            self._maker,
        )


def fetch_lists(consumer: AIOKafkaConsumer, maker: ListMaker) -> None:
    """Let ``getmany`` of a started consumer return lists that ``maker`` made; its ``max_records`` then counts lists."""
    fetcher = consumer._fetcher
    fetcher._client = tap = _FetchTap(fetcher._client, maker)
    fetcher._records = _Fetched(fetcher._records, tap, maker)


async def end_consumer(consumer: AIOKafkaConsumer, *, leave_within: float) -> None:
    """Leave the group, if the broker answers within ``leave_within`` seconds, and end the consumer."""
    consumer._closed = True
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    tasks: list[asyncio.Task[Any] | None] = []
    if coordinator is not None:
        closing = getattr(coordinator, "_closing", None)
        if closing is not None and not closing.done():
            closing.set_result(None)
        names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
        await end_tasks([getattr(coordinator, name, None) for name in names])
        if hasattr(coordinator, "_maybe_leave_group"):
            leaving = asyncio.ensure_future(coordinator._maybe_leave_group())
            await asyncio.wait((leaving,), timeout=leave_within)
            tasks.append(leaving)
    if fetcher is not None:
        fetcher._closed = True
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]
    await end_tasks(tasks)
    await consumer._client.aclose()


async def end_tasks(tasks: list[asyncio.Task[Any] | None]) -> None:
    """Cancel until they are gone: one that catches the first cancellation gets the next."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for _ in range(50):
        if not alive:
            return
        for task in alive:
            task.cancel()
        await asyncio.sleep(0)
        alive = [task for task in alive if not task.done()]
