"""One subscription of many topics: lists, patterns, and what is counted for each topic."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from msight_bus import ConnectionLostError, QueuePolicy, TopicError
from msight_bus.events import DeadlineMissed, Gap, Reconnected
from tests.support.brokers import make_backend_alone
from tests.support.receiving import lose, take
from tests.support.rig import seen, until

CAMERAS = [f"cam{number}" for number in range(8)]


def without_log(bus):
    """Skip the test where offsets, not sequences, tell what is missing."""
    if bus.capabilities.persistence:
        pytest.skip("the log keeps the messages")


def topics_of(messages):
    return [message.topic for message in messages]


async def publish_each(bus, topics, count=1):
    """Publish ``count`` messages on each topic, in turn."""
    for number in range(count):
        for topic in topics:
            await bus.publish(topic, b"%d" % number)


async def received(messages, count):
    await until(lambda: messages.stats.received >= count)


# -- lists


async def test_a_list_is_one_stream_and_each_message_has_its_topic(backend, topic):
    topics = [f"{topic}.{camera}" for camera in CAMERAS]
    async with backend.connect() as bus, bus.subscribe(topics) as messages:
        assert messages.topics == tuple(topics)
        await publish_each(bus, [*topics, f"{topic}.other"], 5)
        came = await take(messages, 40)
    assert Counter(topics_of(came)) == dict.fromkeys(topics, 5)
    for each in topics:
        assert [int(message.payload) for message in came if message.topic == each] == list(range(5))


async def test_a_thousand_topics_are_one_subscription(backend, topic):
    number = 100 if backend.name == "kafka" else 1000  # Kafka takes many seconds to create a thousand topics
    topics = [f"{topic}.{i}" for i in range(number)]
    async with backend.connect(MSIGHT_KAFKA_PARTITIONS="1") as bus, bus.subscribe(topics) as messages:
        await publish_each(bus, topics, 2)
        came = await take(messages, 2 * number)
        assert Counter(topics_of(came)) == dict.fromkeys(topics, 2)
        assert len(messages.stats.topics) == number


# -- patterns


async def test_a_star_is_one_part_and_an_arrow_the_rest(backend, topic):
    names = ["a", "a.ne", "a.ne.raw", "b.ne", "a.sw.raw"]
    matched = {"a.*": ["a.ne"], "a.>": ["a.ne", "a.ne.raw", "a.sw.raw"], "*.ne": ["a.ne", "b.ne"]}
    matched |= {"*": ["a"], "a.*.raw": ["a.ne.raw", "a.sw.raw"], ">": names}
    for pattern, expected in matched.items():
        async with backend.connect() as bus, bus.subscribe(f"{topic}.{pattern}") as messages:
            await publish_each(bus, [f"{topic}.{name}" for name in (*names, expected[0])])
            came = await take(messages, len(expected) + 1)
            assert sorted(topics_of(came)) == sorted(f"{topic}.{name}" for name in (*expected, expected[0]))
            assert messages.stats.received == len(expected) + 1


async def test_a_message_is_delivered_once_however_many_entries_match(backend, topic):
    entries = [f"{topic}.cam.ne", f"{topic}.cam.*", f"{topic}.*.ne", f"{topic}.>", f"{topic}.*.*.raw"]
    names = [f"{topic}.{name}" for name in ("cam.ne", "cam.sw", "lidar.ne", "lidar", "cam.ne.raw")]
    async with backend.connect() as bus, bus.subscribe(entries) as messages:
        await publish_each(bus, names, 20)
        await publish_each(bus, names)
        came = await take(messages, 105)
        assert Counter(topics_of(came)) == dict.fromkeys(names, 21)
        assert messages.stats.received == 105
        assert messages.stats.gaps == 0
        assert not messages.stats.duplicates
        assert {name: stats.received for name, stats in messages.stats.topics.items()} == dict.fromkeys(names, 21)


async def test_two_subscriptions_share_no_pattern(backend, topic):
    pattern = f"{topic}.*"
    async with backend.connect() as bus, bus.subscribe(pattern) as one:
        await publish_each(bus, [f"{topic}.a", f"{topic}.b"])
        await take(one, 2)
        async with bus.subscribe([pattern, f"{topic}.a"]) as other:
            await publish_each(bus, [f"{topic}.a", f"{topic}.b"], 10)
            pairs = zip(await take(one, 20), await take(other, 20), strict=True)
            assert all(mine is not theirs for mine, theirs in pairs)
        await publish_each(bus, [f"{topic}.a", f"{topic}.c"])
        assert sorted(topics_of(await take(one, 2))) == [f"{topic}.a", f"{topic}.c"]


async def test_a_pattern_can_match_nothing(backend, topic):
    async with backend.connect() as bus, bus.subscribe(f"{topic}.none.*") as messages:
        await bus.publish(f"{topic}.other", b"x")
        with pytest.raises(TimeoutError):
            await take(messages, 1, within=0.2)
        assert (messages.stats.received, messages.stats.topics) == (0, {})


async def test_patterns_match_neither_reserved_topics_nor_dead_letters(backend, topic):
    if backend.name in ("redis", "nats"):  # where other tests publish meanwhile
        backend = make_backend_alone(backend.name)
    async with backend.connect(MSIGHT_DEAD_LETTER_SUFFIX="-lost") as bus:
        everything = f"{topic}.>" if bus.capabilities.persistence else ">"  # a log has the topics of all other tests
        async with bus.subscribe(everything) as messages:
            await bus.core.publish("_msight.test", b"reserved")
            await bus.publish(f"{topic}.a-lost", b"a dead letter")
            await bus.publish(f"{topic}.a.dead", b"no dead letter here")
            await bus.publish(f"{topic}.a", b"a message")
            came = await take(messages, 2)
            assert sorted(topics_of(came)) == [f"{topic}.a", f"{topic}.a.dead"]
            assert (messages.stats.received, dict(messages.stats.dropped)) == (2, {})


@pytest.mark.parametrize("size", [100, 70_000, 300_000])
async def test_messages_of_a_pattern_are_whole_whatever_their_size(backend, topic, size):
    async with backend.connect() as bus, bus.subscribe(f"{topic}.*") as messages:
        for number in range(5):
            await bus.publish(f"{topic}.a", bytes([number]) * size, headers={"n": str(number)} if number % 2 else None)
        for number, message in enumerate(await take(messages, 5)):
            assert (message.payload, dict(message.headers)) == (
                bytes([number]) * size,
                {"n": str(number)} if number % 2 else {},
            )


# -- groups


async def test_a_group_shares_what_overlapping_entries_match(backend, topic):
    entries = [f"{topic}.cam.ne", f"{topic}.cam.*", f"{topic}.*.ne"]
    names = [f"{topic}.{name}" for name in ("cam.ne", "cam.sw", "lidar.ne")]
    async with backend.connect() as bus, backend.connect() as other:
        if not bus.capabilities.load_balancing:
            pytest.skip(f"{backend.name} declares no load balancing")
        await publish_each(bus, names)  # on Kafka, a topic that is new rebalances the group
        async with bus.subscribe(entries, group_id="g") as one, other.subscribe(entries, group_id="g") as two:
            await publish_each(bus, names, 100)
            await until(lambda: one.stats.received + two.stats.received >= 300)
            shares = [await take(each, each.stats.received) for each in (one, two)]
    assert all(shares)
    assert Counter(topics_of(shares[0] + shares[1])) == dict.fromkeys(names, 100)
    for share in shares:
        for name in names:
            numbers = [int(message.payload) for message in share if message.topic == name]
            assert numbers == sorted(numbers)


async def test_each_group_of_one_bus_receives_every_message_once(backend, topic):
    names = [f"{topic}.a", f"{topic}.b"]
    async with backend.connect() as bus:
        if not bus.capabilities.load_balancing:
            pytest.skip(f"{backend.name} declares no load balancing")
        await publish_each(bus, names)
        entries = [names[0], f"{topic}.*"]
        async with bus.subscribe(entries, group_id="g") as one, bus.subscribe(entries, group_id="h") as two:
            await publish_each(bus, names, 20)
            for messages in (one, two):
                assert Counter(topics_of(await take(messages, 40))) == dict.fromkeys(names, 20)
                with pytest.raises(TimeoutError):
                    await take(messages, 1, within=0.1)
                assert messages.stats.received == 40


# -- queues


async def test_latest_keeps_the_last_of_each_topic(backend, topic):
    topics = [f"{topic}.{camera}" for camera in CAMERAS]
    for entries in (topics, f"{topic}.*"):
        async with backend.connect() as bus, bus.subscribe(entries, queue=QueuePolicy.latest(2)) as messages:
            await publish_each(bus, topics, 3)
            for number in range(100):  # a fast one
                await bus.publish(topics[0], b"%d" % number)
            await received(messages, 124)
            stats = messages.stats
            # On Kafka, a first fetch of three records of a topic continues with the last two ("skipped").
            assert (stats.queued, sum(stats.dropped.values())) == (16, 108)
            assert sum(stats.topics[topics[0]].dropped.values()) == 101
            assert set(stats.dropped) <= ({"latest", "skipped"} if backend.name == "kafka" else {"latest"})
            came = await take(messages, 16)
        assert [int(message.payload) for message in came if message.topic == topics[0]] == [98, 99]
        for each in topics[1:]:
            assert [int(message.payload) for message in came if message.topic == each] == [1, 2]


@pytest.mark.parametrize(
    "policy",
    [QueuePolicy.block(100), QueuePolicy.drop_oldest(100), QueuePolicy.drop_newest(100), QueuePolicy.latest(100)],
    ids=lambda policy: policy.when_full,
)
async def test_the_messages_of_several_topics_keep_the_order_in_which_one_bus_published_them(backend, topic, policy):
    topics = [f"{topic}.a", f"{topic}.b", f"{topic}.c"]
    for entries in (topics, f"{topic}.*"):
        async with backend.connect() as bus, bus.subscribe(entries, queue=policy) as messages:
            await publish_each(bus, topics, 10)
            found = [(message.topic, int(message.payload)) for message in await take(messages, 30)]
            if bus.capabilities.persistence:  # a log keeps the order of a partition only
                for name in topics:
                    assert [number for each, number in found if each == name] == list(range(10))
            else:
                assert found == [(name, number) for number in range(10) for name in topics]


async def test_a_blocking_queue_pauses_all_topics_and_loses_nothing(backend, topic):
    topics = [f"{topic}.{camera}" for camera in CAMERAS]
    for entries in (topics, f"{topic}.*"):
        async with backend.connect() as bus, backend.connect() as other:
            async with other.subscribe(entries, queue=QueuePolicy.block(10)) as messages:
                publishing = asyncio.create_task(publish_each(bus, topics, 50))
                came = await take(messages, 400)
                await publishing
                assert Counter(topics_of(came)) == dict.fromkeys(topics, 50)
                assert dict(messages.stats.dropped) == {}


async def test_draining_delivers_what_is_queued_of_all_topics(backend, topic):
    topics = [f"{topic}.a", f"{topic}.b"]
    async with backend.connect() as bus:
        async with bus.subscribe([topics[0], f"{topic}.*"]) as messages:
            await publish_each(bus, topics, 10)
            await received(messages, 20)
            draining = asyncio.create_task(bus.drain())
            assert Counter([message.topic async for message in messages]) == dict.fromkeys(topics, 10)
            await draining


# -- counters, deadlines, gaps


async def test_counters_are_kept_for_each_topic(backend, topic):
    async with backend.connect() as bus, bus.subscribe([f"{topic}.a", f"{topic}.*"]) as messages:
        await bus.publish(f"{topic}.a", b"x")
        for _ in range(3):
            await bus.publish(f"{topic}.b", b"x")
        await take(messages, 3)
        await received(messages, 4)
        topics = messages.stats.topics
        assert {name: stats.received for name, stats in topics.items()} == {f"{topic}.a": 1, f"{topic}.b": 3}
        assert sum(stats.delivered for stats in topics.values()) == 3
        assert all((stats.gaps, stats.missing) == (0, 0) for stats in topics.values())


async def test_topics_over_the_limit_are_forgotten_and_told(backend, topic):
    events: list = []
    names = [f"{topic}.t{number}" for number in range(50)]
    async with backend.connect(events=events, MSIGHT_STATS_TOPICS="10", MSIGHT_KAFKA_PARTITIONS="1") as bus:
        async with bus.subscribe(f"{topic}.*") as messages:
            await publish_each(bus, names, 2)
            came = await take(messages, 100)
            stats = messages.stats
    assert Counter(topics_of(came)) == dict.fromkeys(names, 2)
    assert (len(stats.topics), stats.received, stats.delivered) == (10, 100, 100)
    assert stats.evicted >= 40
    assert {event.cause for event in seen(events, Gap)} == {"evicted"}


async def test_the_sums_of_a_subscription_contain_the_losses_of_topics_that_were_forgotten(backend, topic):
    events: list = []
    async with backend.connect(events=events, MSIGHT_STATS_TOPICS="1") as bus:
        without_log(bus)
        async with bus.subscribe(f"{topic}.*") as messages:
            for name in ("a", "b", "c"):
                await bus.publish(f"{topic}.{name}", b"before")
                lose(bus, f"{topic}.{name}")
                await bus.publish(f"{topic}.{name}", b"after")
            await take(messages, 6)
            stats = messages.stats
            assert (stats.gaps, stats.missing, stats.duplicates, stats.evicted) == (3, 3, 0, 2)
            assert {name: of.missing for name, of in stats.topics.items()} == {f"{topic}.c": 1}
            assert len([event for event in seen(events, Gap) if event.cause == "lost"]) == 3


async def test_each_topic_has_a_deadline(backend, topic):
    events: list = []
    named, matched = f"{topic}.named", f"{topic}.matched"
    async with backend.connect(events=events) as bus, bus.subscribe([named, f"{topic}.*"], deadline=0.3) as messages:
        await until(lambda: seen(events, DeadlineMissed))  # without a message: the topic that is given by name only
        assert seen(events, DeadlineMissed) == [DeadlineMissed(named, 0.3)]
        await bus.publish(matched, b"x")
        await take(messages, 1)
        await until(lambda: DeadlineMissed(matched, 0.3) in events)
        assert messages.stats.deadlines_missed == len(seen(events, DeadlineMissed)) == 2


async def test_a_gap_has_its_topic(backend, topic):
    events: list = []
    async with backend.connect(events=events) as bus:
        without_log(bus)
        async with bus.subscribe([f"{topic}.a", f"{topic}.*"]) as messages:
            for name in ("a", "b", "c"):
                await bus.publish(f"{topic}.{name}", b"before")
                if name != "c":
                    lose(bus, f"{topic}.{name}")
                await bus.publish(f"{topic}.{name}", b"after")
            await take(messages, 6)
            await until(lambda: len(seen(events, Gap)) == 2)
            assert seen(events, Gap) == [Gap(f"{topic}.a", 1, "lost"), Gap(f"{topic}.b", 1, "lost")]
            assert {name: stats.missing for name, stats in messages.stats.topics.items()} == {
                f"{topic}.a": 1,
                f"{topic}.b": 1,
                f"{topic}.c": 0,
            }


async def test_a_lost_end_of_a_matched_topic_is_found_by_its_announcement(backend, topic):
    events: list = []
    async with backend.connect(events=events, MSIGHT_ANNOUNCE_INTERVAL="0.1") as bus:
        without_log(bus)
        async with bus.subscribe(f"{topic}.*") as messages:
            await bus.publish(f"{topic}.a", b"the last that arrives")
            lose(bus, f"{topic}.a")
            await take(messages, 1)
            await until(lambda: seen(events, Gap))
            assert seen(events, Gap) == [Gap(f"{topic}.a", 1, "lost")]


async def test_reconnecting_reports_a_gap_on_each_known_topic_and_resubscribes(backend, topic):
    events: list = []
    async with backend.connect(events=events, MSIGHT_RECONNECT_MAX="0.1") as bus, backend.connect() as other:
        without_log(bus)
        entries = [f"{topic}.a", f"{topic}.*", f"{topic}.*.raw"]
        names = [f"{topic}.{name}" for name in ("a", "b", "b.raw")]
        async with bus.subscribe(entries) as messages:
            await publish_each(other, names)
            await take(messages, 3)
            bus.core.backend._subscribing.connection.fail(ConnectionLostError("cut by the test"))
            lost = [f"{topic}.b", f"{topic}.new"]
            await publish_each(other, lost)
            await until(lambda: seen(events, Reconnected))
            await until(lambda: len([event for event in seen(events, Gap) if event.cause == "reconnect"]) == 3)
            assert {event.topic for event in seen(events, Gap) if event.cause == "reconnect"} == set(names)
            await publish_each(other, [*names, f"{topic}.new"])
            came = await take(messages, 4)
            assert sorted(topics_of(came)) == sorted([*names, f"{topic}.new"])
            assert messages.stats.topics[f"{topic}.b"].missing == 1
            assert messages.stats.topics[f"{topic}.a"].missing == 0


# -- what is refused


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], "The list of topics is empty"),
        (["a", "b", "a"], "'a' is in the list of topics twice"),
        (["a.*", "a.*"], "'a.\\*' is in the list of topics twice"),
        ({"a": 1}, "Subscribe to a topic, a pattern such as 'camera.\\*', or a list of them, not dict"),
        (None, "not NoneType"),
        (["a", 3], "A topic must be a str, not int"),
    ],
)
async def test_what_is_no_list_of_topics_and_patterns_is_refused(backend, entries, text):
    async with backend.connect() as bus:
        with pytest.raises(TopicError, match=text):
            bus.subscribe(entries)


async def test_a_pattern_of_dead_letter_topics_is_a_warning(backend, caplog):
    async with backend.connect() as bus:
        bus.subscribe(["camera.>", "camera.*", "camera.dead.*"])
        assert not caplog.records
        bus.subscribe(["camera.ne.dead", "camera.*.dead"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "The pattern camera.*.dead matches no topic" in caplog.text


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("camera/*", "Use '\\*' or a list"),
        ("cam*.ne", "'\\*' stands for one whole part"),
        ("camera.>.ne", "'>' stands for all remaining parts and must be the last part"),
        ("camera.>*", "not a valid pattern"),
        ("camera..*", "a part before or after a dot is empty"),
        ("_msight.*", "reserved for the bus"),
        ("camera.*.a b", "not a valid pattern"),
        ("*." + "a" * 200, "at most 200 are accepted"),
    ],
)
async def test_an_invalid_entry_is_named(backend, entry, text):
    async with backend.connect() as bus:
        with pytest.raises(TopicError, match=text) as raised:
            bus.subscribe(["camera.ne", entry])
        assert raised.value.topic == entry
