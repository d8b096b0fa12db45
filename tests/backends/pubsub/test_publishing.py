"""The sequence counters of published topics: shared, bounded, and evicted only after their last announcement."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from msight_bus.backends.base import BLOCKED
from msight_bus.backends.pubsub import publishing
from msight_bus.backends.pubsub.in_flight import InFlight
from msight_bus.backends.pubsub.publishing import PublishedTopics, PubSubPublisher
from msight_bus.errors import AuthenticationError, ConnectionLostError, PublishTimeoutError
from msight_bus.events import Refused
from msight_bus.settings import Limits
from msight_bus.tasks import Gate


class Announcer:
    """Notes what was announced, as `tail_loss.SequenceAnnouncer`."""

    def __init__(self) -> None:
        self.works = True
        self.open = True
        self.announced: list[list[str]] = []
        self.touches: list[str] = []

    def touched(self, topic) -> None:
        self.touches.append(topic.counter.topic)

    def announce_now(self, topics) -> bool:
        if not self.open:
            return False
        self.announced.append([topic.counter.topic for topic in topics])
        for topic in topics:
            topic.announced = topic.counter.sequence
        return True


def topics_of(limit: int, announcer: Announcer | None = None) -> PublishedTopics:
    return PublishedTopics(limit, itertools.count(100).__next__, announcer)


def publish(topics: PublishedTopics, name: str) -> tuple[int, int]:
    """What a publisher does with the counter; returns the message's session and sequence."""
    topic = topics.use(name)
    topic.counter.sequence += 1
    return topic.counter.session, topic.counter.sequence


def names(topics: PublishedTopics) -> list[str]:
    return [topic.counter.topic for topic in topics.all]


async def test_all_topics_share_a_session_and_each_has_a_counter():
    topics = topics_of(10)
    assert [publish(topics, name) for name in "aba"] == [(100, 1), (100, 1), (100, 2)]
    assert topics.get("a") is topics.known("a")
    assert topics.known("c") is None


async def test_the_least_recently_used_topic_is_evicted():
    topics = topics_of(3)
    for name in "abcad":
        publish(topics, name)
    topics.trim()
    assert names(topics) == ["c", "a", "d"]


async def test_an_evicted_topic_begins_a_new_session():
    topics = topics_of(2)
    first = publish(topics, "a")
    for name in "bc":
        publish(topics, name)
    again = publish(topics, "a")
    assert (first, again) == ((100, 1), (101, 1))
    assert publish(topics, "c") == (100, 2)  # whoever is known goes on


async def test_sessions_are_never_0():
    topics = PublishedTopics(2, lambda: 0, None)
    assert publish(topics, "a") == (1, 1)


async def test_no_session_and_sequence_is_used_twice():
    topics = topics_of(4)
    seen = {(name, *publish(topics, name)) for _ in range(3) for name in "abcdefghij"}
    assert len(seen) == 30
    assert len(names(topics)) == 4


async def test_a_bus_knows_its_last_sessions(monkeypatch):
    monkeypatch.setattr(publishing, "_SESSIONS", 5)
    topics = topics_of(1)
    for i in range(50):
        session, _ = publish(topics, f"t{i}")
        assert topics.is_own(session)
        assert not topics.is_own(session + 1)
        assert len(topics._sessions) <= 5


async def test_a_topic_with_publishers_is_kept():
    topics = topics_of(2)
    held = topics.get("a")
    held.kept += 1
    for name in "bcd":
        publish(topics, name)
    assert set(names(topics)) == {"a", "d"}
    held.kept = 0
    for name in "ef":
        publish(topics, name)
    assert "a" not in names(topics)


async def test_topics_with_publishers_are_kept_above_the_limit():
    topics = topics_of(2)
    for name in "abcd":
        topics.get(name).kept += 1
    assert set(names(topics)) == set("abcd")


async def test_a_topic_is_evicted_once_its_last_sequence_was_announced():
    announcer = Announcer()
    topics = topics_of(3, announcer)
    for name in "abcde":
        publish(topics, name)
    assert announcer.touches == list("abcde")
    topics.trim()
    assert names(topics) == list("abcde")
    announcer.announce_now([topics.get(name) for name in "ac"])
    gone = topics.get("a")
    topics.trim()
    assert names(topics) == list("bcde")  # the oldest one waits for its announcement
    assert gone.evicted
    announcer.announce_now([topics.get("b")])
    topics.trim()
    assert names(topics) == list("cde")


async def test_above_the_limit_the_least_recently_used_topics_are_announced_early(monkeypatch):
    monkeypatch.setattr(publishing, "_WAITING", 2)
    announcer = Announcer()
    announcer.open = False
    topics = topics_of(3, announcer)
    for name in "abcdef":
        publish(topics, name)
    assert names(topics) == list("abcdef")
    announcer.open = True
    publish(topics, "g")
    assert announcer.announced == [list("abcdef")]
    assert len(names(topics)) == 3


async def test_without_announcements_topics_are_evicted_at_once():
    announcer = Announcer()
    announcer.works = announcer.open = False
    topics = topics_of(3, announcer)
    for name in "abcde":
        publish(topics, name)
    topics.trim()
    assert names(topics) == list("cde")


async def test_evicting_a_recently_used_topic_is_one_warning(caplog):
    topics = topics_of(2)
    for name in "abcdef":
        publish(topics, name)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "'a'" in record.getMessage()
    assert "MSIGHT_PUBLISHER_TOPICS" in record.getMessage()


async def test_evicting_an_idle_topic_is_no_warning(msight_simulation, caplog):
    topics = topics_of(2)
    for name in "abcdef":
        publish(topics, name)
        await asyncio.sleep(61)
    assert caplog.records == []
    assert names(topics) == ["e", "f"]


# -- publishers


class Connection:
    """As much of an open connection as a publisher uses."""

    def __init__(self) -> None:
        self.congested = False
        self.in_flight = InFlight()
        self.written: list[tuple[int, bytes]] = []

    def publish(self, sender, counter, payload, key, headers) -> None:
        counter.sequence += 1
        self.in_flight.wrote(sender)
        self.written.append((counter.sequence, payload))


class Owner:
    """As much of a reconnecting connection as a publisher uses."""

    def __init__(self) -> None:
        self.connection: Connection | None = Connection()
        self.gate = Gate()
        self.turn = None
        self.reason = None
        self.room = asyncio.Event()
        self.confirms = True

    async def writable(self) -> Connection:
        while self.connection is None or self.connection.congested:
            self.room.clear()
            await self.room.wait()
        return self.connection

    async def confirm(self) -> None:
        if not self.confirms:
            raise PublishTimeoutError("they may still arrive")
        if self.connection is not None:
            self.connection.in_flight.confirm(1_000_000)


class Publishers:
    """Publishers on one connection."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.events: list[object] = []
        self.topics = topics_of(100)

    def on(self, topic: str) -> PubSubPublisher:
        return PubSubPublisher(
            self.topics, topic, self.owner, Limits(publish_timeout=2.0), self.events.append, keeps=True
        )


async def test_publishers_on_one_topic_share_its_counter(msight_simulation):
    made = Publishers()
    one, other = made.on("a"), made.on("a")
    for publisher in (one, other, one):
        assert publisher.try_send(b"", None, None) is None
    assert [sequence for sequence, _ in made.owner.connection.written] == [1, 2, 3]
    one.close()
    one.close()
    assert (made.topics.get("a").publishers, made.topics.get("a").kept) == ([other], 1)


async def test_waiting_publishers_send_more_than_one_message_a_turn(msight_simulation):
    """One message a turn would cost one event loop iteration for each message while several publishers send."""
    made = Publishers()
    owner, count, burst = made.owner, 500, 50

    class Bursts(Connection):
        def publish(self, *message) -> None:
            super().publish(*message)
            if len(self.written) % burst == 0:
                self.congested = True
                asyncio.get_running_loop().call_soon(self.release)

        def release(self) -> None:
            self.congested = False
            owner.room.set()

    owner.connection = Bursts()

    async def publish(topic: str) -> None:
        publisher = made.on(topic)
        for number in range(count):
            payload = b"%s %d" % (topic.encode(), number)
            if publisher.try_send(payload, None, None) is BLOCKED:
                await publisher.send(payload, None, None)

    publishing = [asyncio.create_task(publish(topic)) for topic in ("a", "b", "c")]
    iterations = 0
    while not all(task.done() for task in publishing):
        iterations += 1
        await asyncio.sleep(0)
    written = [payload.split() for _, payload in owner.connection.written]
    for topic in (b"a", b"b", b"c"):
        assert [int(number) for name, number in written if name == topic] == list(range(count))
    assert iterations < 3 * count / 5
    first = [name for name, _ in written[: 9 * burst]]
    assert min(first.count(topic) for topic in (b"a", b"b", b"c")) >= 2 * burst  # in turn


async def test_try_send_accepts_nothing_while_disconnected_congested_or_waited_for(msight_simulation):
    made = Publishers()
    publisher, owner = made.on("a"), made.owner
    owner.connection.congested = True
    assert publisher.try_send(b"", None, None) is BLOCKED
    waiting = asyncio.create_task(publisher.send(b"first", None, None))
    await asyncio.sleep(0.01)
    owner.connection.congested = False
    assert publisher.try_send(b"second", None, None) is BLOCKED  # it would overtake the first
    owner.room.set()
    await waiting
    assert publisher.try_send(b"second", None, None) is None
    assert [payload for _, payload in owner.connection.written] == [b"first", b"second"]
    owner.connection = None
    assert publisher.try_send(b"", None, None) is BLOCKED


@pytest.mark.parametrize("away", [True, False])
async def test_a_message_without_room_before_the_deadline_is_not_sent(msight_simulation, away):
    made = Publishers()
    publisher, connection = made.on("a"), made.owner.connection
    if away:
        made.owner.connection, made.owner.reason = None, ConnectionLostError("cut")
    else:
        connection.congested = True
    start = asyncio.get_running_loop().time()
    with pytest.raises(PublishTimeoutError, match="not sent") as caught:
        await publisher.send(b"", None, None)
    assert asyncio.get_running_loop().time() - start == pytest.approx(2.0)
    assert ("not connected" if away else "write buffer full") in str(caught.value)
    assert connection.written == []


async def test_a_refusal_is_raised_once_by_the_publisher_of_the_message(msight_simulation):
    made = Publishers()
    one, other = made.on("a"), made.on("a")
    one.try_send(b"", None, None)
    other.try_send(b"", None, None)
    made.owner.connection.in_flight.refuse(AuthenticationError("no permission"))
    assert made.events == [Refused("a", "no permission")]
    assert other.try_send(b"", None, None) is None
    with pytest.raises(AuthenticationError):
        one.try_send(b"", None, None)
    assert one.try_send(b"", None, None) is None


async def test_a_waiting_publisher_raises_a_refusal_of_its_earlier_message(msight_simulation):
    made = Publishers()
    publisher, connection = made.on("a"), made.owner.connection
    publisher.try_send(b"first", None, None)
    connection.congested = True
    waiting = asyncio.create_task(publisher.send(b"second", None, None))
    await asyncio.sleep(0.01)
    connection.in_flight.refuse(AuthenticationError("no permission"))
    connection.congested = False
    made.owner.room.set()
    with pytest.raises(AuthenticationError):
        await waiting
    assert [payload for _, payload in connection.written] == [b"first"]


async def test_flush_raises_losses_and_refusals_of_its_own_publisher_only(msight_simulation):
    made = Publishers()
    one, other = made.on("a"), made.on("a")
    for publisher in (one, one, other):
        publisher.try_send(b"", None, None)
    made.owner.connection.in_flight.connection_lost(ConnectionLostError("cut"))
    with pytest.raises(ConnectionLostError, match="2 messages on 'a'") as caught:
        await one.flush()
    assert str(caught.value.__cause__) == "cut"
    await one.flush()
    one.try_send(b"", None, None)
    made.owner.connection.in_flight.refuse(AuthenticationError("no permission"))
    with pytest.raises(AuthenticationError):
        await one.flush()
    with pytest.raises(ConnectionLostError, match="1 message on"):
        await other.flush()
    made.owner.confirms = False
    with pytest.raises(PublishTimeoutError, match="may still arrive"):
        await one.flush()
