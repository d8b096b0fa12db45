"""Answers as no sound broker gives them, and answers that are lost: what a bus makes of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from contextlib import AsyncExitStack

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion

from msight_bus import AuthenticationError, BusError
from msight_bus.backends.kafka import consumer, fetch_failures
from msight_bus.backends.kafka.aiokafka_compat import EpochEndRequest, TopicIdentitiesRequest
from msight_bus.backends.kafka.start_offsets import end_of_epoch
from msight_bus.events import Gap
from tests.support.kafka_admin import make
from tests.support.kafka_answers import (
    FETCH,
    INIT_PRODUCER_ID,
    METADATA,
    OFFSETS,
    PRODUCE,
    changing_answers,
    of_partition,
    with_code,
)
from tests.support.receiving import numbers, take
from tests.support.rig import until

PATIENT = {"MSIGHT_CONNECT_TIMEOUT": "3600", "MSIGHT_PUBLISH_TIMEOUT": "3600"}
"""What stands still is not ended by the deadline of a request."""

IDENTITY_VERSION = 10
"""Of the metadata request that asks for a topic's id."""


# -- answers to a fetch


@pytest.mark.parametrize("kept", [2, 20, -9])
async def test_a_fetch_whose_answer_is_cut_short_is_sent_again(kafka, topic, kept):
    """Cut within the number of the request, the topic's name or the records."""
    cut = []

    def change(request, answer):
        if request.kind == FETCH and b"payload" in answer and not cut:
            cut.append(answer)
            return answer[:kept]
        return answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect(**PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"payload")
            assert [message.payload for message in await take(messages, 1)] == [b"payload"]
    assert cut


async def test_a_fetch_whose_answer_has_another_number_is_sent_again(kafka, topic):
    changed = []

    def change(request, answer):
        if request.kind == FETCH and b"payload" in answer and not changed:
            changed.append(answer)
            return bytes([answer[0] ^ 1]) + answer[1:]
        return answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect(**PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"payload")
            assert [message.payload for message in await take(messages, 1)] == [b"payload"]
            assert messages.stats.received == 1
    assert changed


def failing_fetches(topic, code, over):
    """A change that answers each fetch of the topic with an error until ``over`` is set."""

    def change(request, answer):
        if request.kind == METADATA and topic.encode() in answer:
            (change.identified if request.version == IDENTITY_VERSION else change.located).set()
        if request.kind == FETCH and not over.is_set() and of_partition(answer, topic) >= 0:
            change.failed.set()
            return with_code(answer, topic, code)
        return answer

    change.failed, change.located, change.identified = asyncio.Event(), asyncio.Event(), asyncio.Event()
    return change


@pytest.mark.parametrize("code", [3, 6, 56])
async def test_a_broker_that_does_not_lead_a_partition_lets_its_leader_be_looked_for(kafka, topic, code, monkeypatch):
    """UNKNOWN_TOPIC_OR_PARTITION, after which the topic is looked at too, NOT_LEADER_OR_FOLLOWER and KAFKA_STORAGE_ERROR."""
    monkeypatch.setattr(consumer, "_LOOK_EVERY", 3600.0)
    await make(kafka, topic)
    change = failing_fetches(topic, code, over=(leads := asyncio.Event()))
    async with changing_answers(kafka, change) as way, way.connect(**PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            await bus.publish(topic, b"0")
            async with asyncio.timeout(20):
                await change.failed.wait()
                change.located.clear()
                change.identified.clear()
                await change.located.wait()
                if code == 3:
                    await change.identified.wait()
            leads.set()
            assert await numbers(messages, 1) == [0]


async def test_an_error_of_a_fetch_is_logged_once_until_messages_come_again(kafka, topic, caplog, monkeypatch):
    """UNKNOWN_SERVER_ERROR and REQUEST_TIMED_OUT, in turns."""
    monkeypatch.setattr(fetch_failures, "_TOGETHER", 0.0)

    def told():
        lines = [record for record in caplog.records if record.getMessage().startswith(f"Fetch from {topic} failed")]
        return [line.levelname for line in lines]

    await make(kafka, topic)
    works = asyncio.Event()
    codes = itertools.cycle((-1, 7))
    caplog.set_level(logging.DEBUG, logger="msight_bus")

    def change(request, answer):
        return failing_fetches(topic, next(codes), over=works)(request, answer)

    async with changing_answers(kafka, change) as way, way.connect(**PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            for number in range(2):
                works.clear()
                before = len(told())
                await bus.publish(topic, b"%d" % number)
                await until(lambda n=before: len(told()) > n + 2)
                works.set()
                assert await numbers(messages, 1) == [number]
    assert told().count("WARNING") == 2


async def test_failures_of_many_subscriptions_are_two_lines(kafka, topic, caplog, monkeypatch):
    """An outage fails the fetches of all subscriptions at once."""
    monkeypatch.setattr(fetch_failures, "_TOGETHER", 60.0)
    names = [f"{topic}.{number}" for number in range(6)]
    for name in names:
        await make(kafka, name)
    failing = {name: failing_fetches(name, -1, over=asyncio.Event()) for name in names}
    caplog.set_level(logging.DEBUG, logger="msight_bus")

    def again():
        return [line.getMessage() for line in caplog.records if line.levelname == "DEBUG"]

    def change(request, answer):
        for each in failing.values():
            answer = each(request, answer)
        return answer

    async with changing_answers(kafka, change) as way, way.connect(**PATIENT) as bus:
        async with AsyncExitStack() as subscribed:
            for name in names:
                await subscribed.enter_async_context(bus.subscribe(name))
            await until(lambda: all(any(f"Fetch from {name} failed" in line for line in again()) for name in names))
    first, others = (line.getMessage() for line in caplog.records if line.levelname == "WARNING")
    assert first.startswith(f"Fetch from {topic}.")
    assert others.startswith(f"Other subscriptions failed to fetch, too; retrying: {topic}.")
    assert others.endswith(" and 2 more")


async def test_an_unsupported_request_is_told_apart_from_a_closed_connection(kafka, topic, monkeypatch):
    """The end of an epoch, and topic ids, which brokers before Kafka 2.3 and 2.8 do not report."""
    async with kafka.connect() as bus, bus.subscribe(topic) as messages:
        client = messages._at_broker.client
        for request in (EpochEndRequest(TopicPartition(topic, 0), 0), TopicIdentitiesRequest([topic])):
            for struct in type(request)._CLASSES:
                monkeypatch.setattr(struct, "API_VERSION", 99)
            with pytest.raises(IncompatibleBrokerVersion):
                await client.ask(request)
        assert await end_of_epoch(client, TopicPartition(topic, 0), 0) is None


async def test_a_partition_that_is_revoked_while_its_log_is_examined_stays_revoked(kafka, topic, monkeypatch):
    """OFFSET_OUT_OF_RANGE at the end of a rebalance: another member has the partition when the leader responds."""
    events: list = []

    async def first_offset(client, partitions, *_):
        return dict.fromkeys(partitions, 0)

    async with kafka.connect(events=events) as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"0")
        assert await numbers(messages, 1) == [0]
        subscribed = messages._at_broker
        (partition,) = [each for each in subscribed.partitions.values() if each.ledger.expected == 1]

        async def revoke(*_):
            subscribed._fetcher.assign({})

        monkeypatch.setattr(consumer, "list_offsets", first_offset)
        monkeypatch.setattr(consumer, "end_of_epoch", revoke)
        await subscribed.out_of_range(partition)
        assert subscribed.partitions == {}
    assert not [event for event in events if isinstance(event, Gap)]


async def test_records_of_another_leader_are_delivered_where_the_log_is_complete(kafka, topic):
    events: list = []
    second = re.compile(rb"(\0{7}\x01.{4})\0{4}(?=\x02)", re.DOTALL)  # base offset, length and leader epoch of a batch

    def change(request, answer):
        return second.sub(lambda found: found[1] + (1).to_bytes(4), answer) if request.kind == FETCH else answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect(events=events, **PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            for number in range(3):
                await bus.publish(topic, b"%d" % number)
                assert await numbers(messages, 1) == [number]
    assert not [event for event in events if isinstance(event, Gap)]


async def test_a_partition_that_may_not_be_fetched_ends_the_subscription(kafka, topic):
    """TOPIC_AUTHORIZATION_FAILED."""
    await make(kafka, topic)
    change = failing_fetches(topic, 29, over=asyncio.Event())
    async with changing_answers(kafka, change) as way, way.connect(**PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            with pytest.raises(AuthenticationError, match=topic):
                await take(messages, 1)


async def test_a_batch_that_always_comes_damaged_is_passed_over(kafka, topic):
    events, damaged = [], []

    def change(request, answer):
        if request.kind == FETCH and b"second" in answer:
            damaged.append(answer)
            return answer.replace(b"second", b"sEcond")
        return answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect(events=events, **PATIENT) as bus:
        async with bus.subscribe(topic) as messages:
            for payload in (b"first", b"second", b"third"):
                await bus.publish(topic, payload)
            assert [message.payload for message in await take(messages, 2)] == [b"first", b"third"]
    assert len(damaged) == 3  # it could have been damaged on its way
    assert events == [Gap(topic, 1, "unreadable", at_most=True)]


@pytest.mark.parametrize("truncated", [False, True])
async def test_an_offset_out_of_range_begins_the_partition_again_only_if_its_log_ends_before(kafka, topic, truncated):
    """An unclean election truncates a log; a replica that lags behind answers so although nothing is lost."""
    events, refused, ends = [], [], []

    def change(request, answer):
        at = of_partition(answer, topic)
        if request.kind == FETCH and at >= 0 and refuse and not refused:
            refused.append(answer)
            return with_code(answer, topic, 1)
        offset = answer[at + 10 : at + 18]
        if request.kind == OFFSETS and at >= 0 and refused and offset == (2).to_bytes(8, "big"):
            ends.append(offset)
            return answer[: at + 17] + bytes([1 if truncated else 2]) + answer[at + 18 :]
        return answer

    await make(kafka, topic)
    refuse = False
    async with changing_answers(kafka, change) as way, way.connect(events=events) as bus:
        async with bus.subscribe(topic) as messages:
            for number in range(2):
                await bus.publish(topic, b"%d" % number)
            assert await numbers(messages, 2) == [0, 1]
            refuse = True
            await until(lambda: ends)
            await bus.publish(topic, b"2")
            assert await numbers(messages, 3 if truncated else 1) == ([0, 1, 2] if truncated else [2])
    assert events == ([Gap(topic, None, "retention")] if truncated else [])


# -- answers to what was published


@pytest.mark.parametrize("code", [10, 47, 59])
async def test_a_refusal_after_an_unknown_outcome_costs_the_next_message_nothing(kafka, topic, code):
    """The log has the first batch. The next one under its sequence numbers would be taken for its repetition.

    MESSAGE_TOO_LARGE, INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER_ID; the batch is not sent again with another producer id.
    """
    answers = []

    def change(request, answer):
        if request.kind != PRODUCE or of_partition(answer, topic) < 0:
            return answer
        answers.append(answer)
        if len(answers) == 1:
            return None
        return with_code(answer, topic, code) if len(answers) == 2 else answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        with pytest.raises(BusError):
            await bus.publish(topic, b"0")
        await bus.publish(topic, b"1")
        async with bus.subscribe(topic, start="earliest") as messages:
            assert await numbers(messages, 2) == [0, 1]


async def test_a_permission_that_is_missing_after_an_unknown_outcome_costs_the_next_message_nothing(kafka, topic):
    """The broker did not refuse the batch: its answer was lost, and the topic may not be described any more."""
    lost, denied = [], asyncio.Event()
    name = len(topic).to_bytes(2, "big") + topic.encode()

    def change(request, answer):
        if request.kind == PRODUCE and of_partition(answer, topic) >= 0 and not lost:
            lost.append(answer)
            denied.set()
            return None
        if request.kind == METADATA and denied.is_set():
            return answer.replace(bytes(2) + name, (29).to_bytes(2, "big") + name)  # TOPIC_AUTHORIZATION_FAILED
        return answer

    await make(kafka, topic)
    async with changing_answers(kafka, change) as way, way.connect() as bus:
        with pytest.raises(AuthenticationError):
            await bus.publish(topic, b"0")
        denied.clear()
        await bus.publish(topic, b"1")
        async with bus.subscribe(topic, start="earliest") as messages:
            assert await numbers(messages, 2) == [0, 1]


async def test_a_producer_id_is_asked_for_again_while_its_coordinator_is_being_loaded(kafka, topic):
    refused = []

    def change(request, answer):
        if request.kind == INIT_PRODUCER_ID and not refused:
            refused.append(answer)
            return answer[:8] + (14).to_bytes(2, "big") + answer[10:]  # COORDINATOR_LOAD_IN_PROGRESS
        return answer

    async with changing_answers(kafka, change) as way, way.connect() as bus:
        await bus.publish(topic, b"0")
    assert refused
