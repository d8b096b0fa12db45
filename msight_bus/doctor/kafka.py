"""Checks of Kafka: they ask for metadata, configuration, groups and offsets, join no group, and create and commit nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from aiokafka import TopicPartition

from msight_bus.backends.kafka.aiokafka_compat import (
    READ_COMMITTED,
    READ_UNCOMMITTED,
    Client,
    CreateTopicsRequest,
    DescribeConfigsRequest,
)
from msight_bus.backends.kafka.errors import error_for
from msight_bus.doctor.evidence import Evidence, Finding, matches
from msight_bus.doctor.kafka_groups import MOST, cluster, ends_of, groups_of, lags, partitions_of
from msight_bus.errors import counted, quoted
from msight_bus.patterns import is_pattern
from msight_bus.settings import BusSettings

_REACHED_WITHIN = 2.0
_HELD_FOR = 3.0
"""Seconds for which a transaction is open before it is a finding."""

_TOPIC = 2
"""Resource type TOPIC of a DescribeConfigs request."""


async def advertised_listeners(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find brokers that cannot be reached at their advertised address."""
    async with cluster(evidence.settings) as client:
        brokers = list(client.cluster.brokers())
    for broker in brokers:
        try:
            async with asyncio.timeout(_REACHED_WITHIN):
                _, writer = await asyncio.open_connection(broker.host, broker.port)
            writer.transport.abort()
        except (OSError, UnicodeError) as error:
            where = f"{quoted(broker.host)}:{broker.port}"
            yield Finding(
                "advertised.listeners",
                f"Broker {broker.nodeId} advertises {where}, which cannot be reached: {error or type(error).__name__}.",
                f"Replace {where} in `advertised.listeners` of broker {broker.nodeId} by an address that this machine can "
                "reach, and restart the broker.",
            )


def _named(evidence: Evidence) -> list[str]:
    topics = dict.fromkeys(evidence.topics)
    for info in evidence.running() if not topics else ():
        topics |= dict.fromkeys((*info.inputs, *info.outputs))
    return [evidence.settings.topic_map.on_broker(topic) for topic in topics if not is_pattern(topic)][:MOST]


async def missing_topics(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find topics that do not exist and that this user's programs cannot create; Kafka checks the creation without creating."""
    kafka, named = evidence.settings.kafka, _named(evidence)
    async with cluster(evidence.settings) as client:
        existing = await partitions_of(client, named) if named else {}
        for topic in named:
            if topic in existing:
                continue
            create = f"kafka-topics.sh --bootstrap-server {kafka.servers[0]} --create --topic {topic}"
            if not kafka.create_topics:
                problem = f"The topic {topic} does not exist and MSIGHT_KAFKA_CREATE_TOPICS is false."
                advice = f"Create it: `{create}`, or `export MSIGHT_KAFKA_CREATE_TOPICS=true`."
                yield Finding("missing topic", problem, advice, about=topic)
                continue
            new: list[Any] = [(topic, kafka.partitions, kafka.replication or -1, [], [])]
            request = CreateTopicsRequest(new, int(_REACHED_WITHIN * 1000), True)  # only validates
            response = await client.ask(request, first=client.cluster.controller and client.cluster.controller.nodeId)
            for _, code, *_ in response.topic_errors:
                if code:
                    problem = f"The topic {topic} does not exist and cannot be created: {error_for(code).__name__}."
                    advice = f"Create it as a user who is permitted to: `{create}`."
                    yield Finding("missing topic", problem, advice, about=topic)


async def _option(client: Client, topics: Iterable[str], name: str) -> dict[str, int]:
    """Return the value of the integer option ``name`` of each topic whose configuration the user may describe."""
    response = await client.ask(DescribeConfigsRequest([(_TOPIC, topic, [name]) for topic in topics]))
    found = response.resources
    return {topic: int(option[1]) for _, _, _, topic, options in found for option in options if option[0] == name}


async def topic_limits(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find topics that do not accept the message that the user wants to send."""
    name, size, server = "max.message.bytes", evidence.message_bytes, evidence.settings.kafka.servers[0]
    async with cluster(evidence.settings) as client:
        limits = await _option(client, await partitions_of(client, _named(evidence) or None), name) if size else {}
    for topic, limit in limits.items():
        if limit < size:
            change = (
                f"kafka-configs.sh --bootstrap-server {server} --alter --topic {topic} --add-config {name}={2 * size}"
            )
            problem = f"A message of {size:,} bytes is larger than {limit:,} bytes ({name} of {topic})."
            yield Finding("message size", problem, f"Raise the limit: `{change}`, or compress the messages.")


async def in_sync_replicas(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find partitions with fewer in-sync replicas than ``min.insync.replicas``, which accept no message."""
    async with cluster(evidence.settings) as client:
        topics = await partitions_of(client, _named(evidence) or None)
        needed_of = await _option(client, topics, "min.insync.replicas")
    for topic, needed in needed_of.items():
        short = [partition for partition in topics[topic] if len(partition[4]) < needed]
        if short:
            _, number, _, replicas, isr, *_ = short[0]
            start = sorted(set(replicas) - set(isr))
            advice = f"Start the brokers {start}" if start else f"Set `min.insync.replicas={len(isr)}` on {topic}"
            problem = (
                f"{topic}: partition {number} has {counted(len(isr), 'in-sync replica')}; min.insync.replicas={needed}."
            )
            more = "" if start else ", or give the topic more replicas"
            yield Finding("in-sync replicas", problem, f"{advice}{more}.")


async def idle_members(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find groups with members that get no message: without a partition, or where messages without a key use one partition."""
    async with cluster(evidence.settings) as client:
        topics = await partitions_of(client, _named(evidence) or None)
        groups, _ = await groups_of(client)
    for group in groups:
        if group.is_stable:
            for finding in _idle(evidence, group.name, group.members, topics):
                yield finding


def _idle(
    evidence: Evidence, group: str, members: list[set[TopicPartition]], topics: dict[str, list[Any]]
) -> Iterator[Finding]:
    for topic in sorted({place.topic for assigned in members for place in assigned if place.topic in topics}):
        seen = evidence.seen.get(evidence.settings.topic_map.topic_of(topic))
        working = [one for one in members if any(place.topic == topic for place in one)]
        if seen and len(working) > 1 < seen.messages and not seen.keyed and len(seen.partitions) == 1:
            yield Finding(
                "idle members",
                f"One of {len(members)} members of the group {quoted(group)} gets all messages of {topic}: the {seen.messages:,} "
                f"observed have no key, and are all in partition {min(seen.partitions)} of {len(topics[topic])}.",
                "Set on the publishers: `export MSIGHT_KAFKA_UNKEYED=spread`, or publish with a key.",
            )
    idle = sum(not assigned for assigned in members)
    if idle:
        problem = f"Members of the group {quoted(group)} without a partition: {idle} of {len(members)}."
        yield Finding(
            "idle members", problem, "Create the topic with more partitions, or start fewer members.", fault=False
        )


async def open_transactions(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find partitions whose last stable offset is below their end: an open transaction blocks the records after it."""
    async with cluster(evidence.settings) as client:
        topics = await partitions_of(client, _named(evidence) or None)
        before = await _held(client, topics)
        if before:
            await asyncio.sleep(_HELD_FOR)
            now = await _held(client, {place.topic: topics[place.topic] for place in before})
            for place, (stable, end) in now.items():
                if place in before and before[place][0] == stable:
                    yield Finding(
                        "transactions",
                        f"{place.topic}: an open transaction blocks {counted(end - stable, 'record')} of partition "
                        f"{place.partition}, from offset {stable:,} on.",
                        "Commit or abort it at its producer, or `export MSIGHT_KAFKA_ISOLATION=read_uncommitted` at the "
                        "subscriber. If the producer is gone: `kafka-transactions.sh --bootstrap-server "
                        f"{evidence.settings.kafka.servers[0]} abort --topic {place.topic} --partition {place.partition} "
                        f"--start-offset {stable}`.",
                        about=place.topic,
                    )


async def _held(client: Client, topics: dict[str, list[Any]]) -> dict[TopicPartition, tuple[int, int]]:
    """Return the last stable offset and the end of each partition where they differ."""
    stable, ends = [await ends_of(client, topics, isolation) for isolation in (READ_COMMITTED, READ_UNCOMMITTED)]
    return {place: (at, ends[place]) for place, at in stable.items() if at < ends.get(place, at)}


async def committed_offsets(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find groups whose committed offset is beyond the end of the log."""
    server = evidence.settings.kafka.servers[0]
    for one in (await lags(evidence.settings))[0]:
        if evidence.topics and not any(matches(topic, one.topic) for topic in evidence.topics):
            continue
        group, topic = quoted(one.group), evidence.settings.topic_map.on_broker(one.topic)
        for number, (offset, end) in sorted(one.beyond.items()):
            yield Finding(
                "committed offsets",
                f"The group {group} has committed offset {offset:,} of {topic}, partition {number}, after its end {end:,}: "
                "its members reset their position by `auto.offset.reset`, or skip the records before that offset.",
                f"Stop the group's members, then: `kafka-consumer-groups.sh --bootstrap-server {server} --group {group} "
                f"--topic {topic}:{number} --reset-offsets --to-earliest --execute`; `--to-latest` skips all records.",
            )


async def topics(settings: BusSettings) -> list[str]:
    """Return the topics that the user may describe."""
    async with cluster(settings) as client:
        return list(await partitions_of(client, None))
