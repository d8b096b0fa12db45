"""When the last sequences of quiet topics are announced: on a virtual clock, with looks every second."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from msight_bus.backends.pubsub.publishing import PublishedTopics
from msight_bus.backends.pubsub.tail_loss import AnnouncementSubscriber, PublishedTopic, SequenceAnnouncer
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.message import Message
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.topics import SEQUENCE_TOPIC


class Wire:
    """Takes announcements, and knows when each came."""

    def __init__(self) -> None:
        self.start = asyncio.get_running_loop().time()
        self.open = True
        self.sent: list[tuple[int, dict[str, int]]] = []
        self.times: list[float] = []
        self.turns: list[int] = []
        self.refusals = 0
        self._turn = 0
        self._counts = False

    def send(self, announcer: SequenceAnnouncer, announcement: bytes) -> bool:
        if not self.open:
            self.refusals += 1
            return False
        session, sequences = msgspec.msgpack.decode(announcement)
        self.sent.append((session, sequences))
        self.times.append(asyncio.get_running_loop().time() - self.start)
        self.turns.append(self._turn)
        if not self._counts:
            self._counts = True
            asyncio.get_running_loop().call_soon(self._next_turn, 10)
        return True

    def _next_turn(self, left: int) -> None:
        self._turn += 1
        self._counts = left > 0
        if self._counts:
            asyncio.get_running_loop().call_soon(self._next_turn, left - 1)


class Rig:
    """An announcer that looks every second, and topics."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.announcer = SequenceAnnouncer(self.wire.send, 1.0)
        self.topics = PublishedTopics(100_000, iter(range(100, 200)).__next__, self.announcer)
        self._running: asyncio.Task | None = None

    async def __aenter__(self) -> Rig:
        self._running = asyncio.create_task(self.announcer.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        await asyncio.wait((self._running,))

    def publish(self, *names: str) -> None:
        for name in names:
            self.topics.use(name).counter.sequence += 1


async def test_a_quiet_topic_is_announced_ever_more_rarely(msight_simulation):
    async with Rig() as announcing:
        announcing.publish("a")
        await asyncio.sleep(200)
        # quiet from the first look to the second, then after pauses of 1, 2, 4, 8, 16, 32 and again 32 looks
        assert announcing.wire.times == pytest.approx([2, 3, 5, 9, 17, 33, 65, 97, 129, 161, 193], abs=0.01)
        assert announcing.wire.sent == [(100, {"a": 1})] * 11


async def test_a_topic_that_is_published_on_again_begins_anew(msight_simulation):
    async with Rig() as announcing:
        announcing.publish("a")
        await asyncio.sleep(20.5)
        announcing.wire.times.clear()
        announcing.publish("a")
        await asyncio.sleep(10)
        assert announcing.wire.times == pytest.approx([22, 23, 25, 29], abs=0.01)
        assert announcing.wire.sent[-1] == (100, {"a": 2})


async def test_a_stream_announces_nothing(msight_simulation):
    async with Rig() as announcing:
        for _ in range(100):
            announcing.publish("a")
            await asyncio.sleep(0.5)
        assert announcing.wire.sent == []


async def test_a_topic_that_was_forgotten_is_announced_no_more(msight_simulation):
    async with Rig() as announcing:
        announcing.publish("a", "b")
        await asyncio.sleep(2.5)
        announcing.topics.get("a").evicted = True
        announcing.wire.sent.clear()
        await asyncio.sleep(20)
        assert announcing.wire.sent == [(100, {"b": 1})] * 4
        assert sum(map(len, announcing.announcer._due.values())) == 1


async def test_what_could_not_be_announced_is_tried_at_the_next_look(msight_simulation):
    async with Rig() as announcing:
        announcing.wire.open = False
        announcing.publish("a")
        await asyncio.sleep(10.5)
        assert (announcing.wire.sent, announcing.wire.refusals) == ([], 9)
        announcing.wire.open = True
        await asyncio.sleep(3)
        assert announcing.wire.times == pytest.approx([11, 12], abs=0.01)


async def test_topics_of_several_sessions_are_announced_apart(msight_simulation):
    announcing = Rig()
    topics = [PublishedTopic(TopicCounter(name, session)) for name, session in (("a", 100), ("b", 101), ("c", 100))]
    assert announcing.announcer.announce_now(topics)
    assert announcing.wire.sent == [(100, {"a": 0, "c": 0}), (101, {"b": 0})]


async def test_a_turn_announces_2000_topics_in_messages_of_500(msight_simulation):
    async with Rig() as announcing:
        announcing.publish(*(f"t{i}" for i in range(5000)))
        await asyncio.sleep(2.5)
        assert [len(sequences) for _, sequences in announcing.wire.sent] == [500] * 10
        assert sorted(Counter(announcing.wire.turns).values()) == [2, 4, 4]


async def test_in_the_end_every_topic_is_announced_and_first_those_that_were_not(msight_simulation, caplog):
    announcing = Rig()
    announcing.publish(*(f"old{i}" for i in range(600)))
    announcing.announcer.announce_now(announcing.topics.all)
    announcing.publish("new")
    announcing.wire.sent.clear()
    await announcing.announcer.announce_last(announcing.topics.all, 1.0)
    first, *rest = announcing.wire.sent
    assert "new" in first[1]
    assert sum(len(sequences) for _, sequences in (first, *rest)) == 601
    assert caplog.records == []


async def test_what_could_not_be_announced_in_the_end_is_said(msight_simulation, caplog):
    announcing = Rig()
    announcing.publish("a", "b")
    announcing.announcer.announce_now([announcing.topics.get("a")])
    announcing.wire.open = False
    start = asyncio.get_running_loop().time()
    await announcing.announcer.announce_last(announcing.topics.all, 1.0)
    assert asyncio.get_running_loop().time() - start == pytest.approx(1.0, abs=0.02)
    (record,) = caplog.records
    assert "1 topic " in record.getMessage()


@pytest.mark.parametrize(
    ("heard", "seconds", "doubted"), [(False, 9.9, False), (False, 10.0, True), (True, 60.0, False)]
)
async def test_a_long_silence_is_a_reason_to_doubt_until_an_announcement_has_come(heard, seconds, doubted, caplog):
    announcer = SequenceAnnouncer(lambda announcer, announcement: True, 1.0)
    if heard:
        announcer.heard_other()
    for _ in range(2):
        announcer.notice_silence("a", seconds)
    assert announcer.others_come is not doubted
    assert len(caplog.records) == int(doubted)
    announcer.heard_other()
    announcer.notice_silence("a", seconds)
    assert announcer.others_come


async def test_who_is_not_permitted_to_announce_says_it_once_and_stops(msight_simulation, caplog):
    async with Rig() as announcing:
        announcing.publish("a")
        announcing.announcer.refused(BusError("busy"))
        assert announcing.announcer.works
        for _ in range(2):
            announcing.announcer.refused(AuthenticationError("no permission"))
        assert not announcing.announcer.works
        await asyncio.sleep(20)
        assert announcing.wire.sent == []
        await announcing.announcer.announce_last(announcing.topics.all, 1.0)
    (record,) = caplog.records
    assert SEQUENCE_TOPIC in record.getMessage()


# -- receiving


class Stream:
    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def announced(self, session, highest):
        self.heard.append((session, highest))


def test_each_stream_is_told_what_concerns_it():
    streams = {"a": [Stream(), Stream()], "b": [Stream()]}
    sessions: list[int] = []
    announcements = AnnouncementSubscriber(lambda topic: streams.get(topic, ()), sessions.append, pytest.fail)
    payload = msgspec.msgpack.encode((7, {"a": 3, "b": 0, "other": 9}))
    announcements.deliver([Message(SEQUENCE_TOPIC, payload), Message(SEQUENCE_TOPIC, payload)])
    assert [stream.heard for stream in streams["a"]] == [[(7, 3)] * 2] * 2
    assert streams["b"][0].heard == [(7, 0)] * 2
    assert sessions == [7, 7]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode((-1, {"a": 1})),
        msgspec.msgpack.encode((1, {"a": -1})),
        msgspec.msgpack.encode((1, {"a": "x"})),
        msgspec.msgpack.encode((1, [1])),
        b"\x92\x01" + b"\x81\xa1a" * 5000,
        b"\x92\x01\x81\xa1\xff\x01",
        msgspec.msgpack.encode((1, {str(number): 1 for number in range(100_000)})),
    ],
    ids=[
        "empty",
        "garbage",
        "short",
        "negative session",
        "negative",
        "text",
        "list",
        "deep",
        "not UTF-8",
        "far too many",
    ],
)
def test_what_is_no_announcement_is_ignored(payload):
    stream, sessions = Stream(), []
    announcements = AnnouncementSubscriber(lambda topic: [stream], sessions.append, pytest.fail)
    right = Message(SEQUENCE_TOPIC, msgspec.msgpack.encode((1, {"a": 2})))
    announcements.deliver([Message(SEQUENCE_TOPIC, payload), right])
    assert stream.heard == [(1, 2)]
    assert sessions == [1]
