"""Topics, consumer groups and lag of a Kafka cluster, with requests that join no group, and create and commit nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion, UnknownTopicOrPartitionError

from msight_bus.backends.kafka.aiokafka_compat import (
    EARLIEST,
    LATEST,
    READ_UNCOMMITTED,
    ClassicGroupsRequest,
    Client,
    ConsumerGroupsRequest,
    ListGroupsRequest,
    MetadataRequest,
    OffsetFetchRequest,
    offsets_request,
    read_classic_groups,
    read_consumer_groups,
    read_offsets,
)
from msight_bus.backends.kafka.client import client_options
from msight_bus.backends.kafka.credentials import Credentials
from msight_bus.backends.kafka.errors import error_for
from msight_bus.doctor.evidence import GroupLag
from msight_bus.settings import BusSettings

MOST = 1000
"""Maximum number of topics, and of groups of one broker, that are read."""

_CONSUMERS = ("consumer", "")
"""Protocol types of groups that consume; the second is of groups whose offsets another program committed."""


@dataclass(frozen=True)
class Group:
    """A consumer group.

    Attributes:
        name: the group's name.
        coordinator: id of the broker that has the committed offsets.
        is_stable: whether the group has members, and no rebalance is in progress.
        members: the partitions of each member; empty where the broker does not describe the group.
    """

    name: str
    coordinator: int
    is_stable: bool
    members: list[set[TopicPartition]]


@asynccontextmanager
async def cluster(settings: BusSettings) -> AsyncIterator[Client]:
    """Connect to a cluster.

    Raises:
        KafkaError: no bootstrap server responded.
    """
    credentials = Credentials(settings.kafka)
    client = Client(credentials, **client_options(settings, credentials))
    try:
        await client.bootstrap()
        yield client
    finally:
        await client.aclose()


async def partitions_of(client: Client, topics: list[str] | None) -> dict[str, list[Any]]:
    """Return the partitions of the topics that exist, without reserved ones; ``None``: of all topics."""
    return (await _described(client, topics))[0]


async def _described(client: Client, topics: list[str] | None) -> tuple[dict[str, list[Any]], set[str]]:
    """Return the partitions of the topics that exist (`partitions_of`), and those of ``topics`` that do not exist."""
    response = await client.ask(MetadataRequest(topics, allow_auto_topic_creation=False))
    found = {name: partitions for code, name, *_, partitions in response.topics if not code and partitions}
    missing = {name for code, name, *_ in response.topics if error_for(code) is UnknownTopicOrPartitionError}
    return {name: found[name] for name in sorted(found)[:MOST] if not name.startswith("_")}, missing


async def ends_of(client: Client, topics: dict[str, list[Any]], isolation: int) -> dict[TopicPartition, int]:
    """Return the offset after the last record of each partition that has a leader.

    Args:
        client: the connections to use.
        topics: partitions by topic, from `partitions_of`.
        isolation: `READ_UNCOMMITTED`, or `READ_COMMITTED`: records from the first open transaction on are not counted.
    """
    return await _offsets_of(client, topics, LATEST, isolation)


async def _offsets_of(
    client: Client, topics: dict[str, list[Any]], at: int, isolation: int
) -> dict[TopicPartition, int]:
    leaders: dict[int, dict[TopicPartition, int]] = {}
    for topic, partitions in topics.items():
        for _, number, leader, *_ in partitions:
            if leader >= 0:
                leaders.setdefault(leader, {})[TopicPartition(topic, number)] = at
    found: dict[TopicPartition, int] = {}
    for leader, places in leaders.items():
        response = await client.send(leader, offsets_request(places, isolation))
        found |= {place: offset for place, code, offset in read_offsets(response) if not code}
    return found


async def groups_of(client: Client) -> tuple[list[Group], int]:
    """Return the groups that consume, and the number of further groups, which are not read."""
    found: list[Group] = []
    others = 0
    for broker in client.cluster.brokers():
        node = broker.nodeId
        listed = sorted(
            name for name, kind in (await client.send(node, ListGroupsRequest())).groups if kind in _CONSUMERS
        )
        others += len(listed[MOST:])
        names = listed[:MOST]
        if not names:
            continue
        described = {
            one.group: one for one in read_classic_groups(await client.send(node, ClassicGroupsRequest(names)))
        }
        rest = [name for name in names if name not in described]
        try:
            response = await client.send(node, ConsumerGroupsRequest(rest)) if rest else None
        except IncompatibleBrokerVersion:
            response = None
        described |= {one.group: one for one in read_consumer_groups(response)} if response else {}
        for name in names:
            one = described.get(name)
            found.append(Group(name, node, one is not None and one.is_stable, one.assigned if one else []))
    return found, others


async def lags(settings: BusSettings) -> tuple[list[GroupLag], int]:
    """Return the lag of each group on each of its topics, and the number of groups that are not read."""
    async with cluster(settings) as client:
        groups, others = await groups_of(client)
        commits: dict[str, dict[TopicPartition, int]] = {}
        for group in groups:
            response = await client.send(group.coordinator, OffsetFetchRequest(group.name, None))
            if response.error_code:
                others += 1
                continue
            commits[group.name] = {
                TopicPartition(topic, number): offset
                for topic, partitions in response.topics
                for number, offset, _, code in partitions
                if offset >= 0 and not code
            }
        topics = {place.topic for group in groups for place in _places(group, commits.get(group.name, ()))}
        partitions, missing = await _described(client, sorted(topics)) if topics else ({}, set())
        starts = await _offsets_of(client, partitions, EARLIEST, READ_UNCOMMITTED)
        ends = await ends_of(client, partitions, READ_UNCOMMITTED)
    known = [(group, commits[group.name]) for group in groups if group.name in commits]
    found = [lag for group, committed in known for lag in _lags(group, committed, starts, ends, missing)]
    topic_of = settings.topic_map.topic_of
    return [replace(one, topic=topic_of(one.topic)) for one in found], others


def _places(group: Group, committed: Iterable[TopicPartition]) -> set[TopicPartition]:
    return set().union(committed, *group.members)


def _lags(
    group: Group,
    committed: dict[TopicPartition, int],
    starts: dict[TopicPartition, int],
    ends: dict[TopicPartition, int],
    missing: Collection[str] = (),
) -> Iterator[GroupLag]:
    """Yield the lag on each topic that exists or is ``missing``; one `GroupLag` for a group without topics."""
    topics: dict[str, list[TopicPartition]] = {}
    every = _places(group, committed)
    if not every:
        yield GroupLag(group.name, "", None, 0, len(group.members))
    for place in every:
        if place in ends or place.topic in missing:
            topics.setdefault(place.topic, []).append(place)
    for topic, places in sorted(topics.items()):
        members = sum(any(place.topic == topic for place in assigned) for assigned in group.members)
        if topic in missing:
            yield GroupLag(group.name, topic, None, 0, members, deleted=True)
            continue
        read = [place for place in places if place in committed]
        behind = [max(0, ends[place] - max(committed[place], starts.get(place, 0))) for place in read]
        beyond = {place.partition: (committed[place], ends[place]) for place in read if committed[place] > ends[place]}
        yield GroupLag(group.name, topic, sum(behind) if behind else None, len(places) - len(behind), members, beyond)
