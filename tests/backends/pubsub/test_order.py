"""A subscription of several topics receives their messages in the order in which the broker sends them, whatever its queue."""

from __future__ import annotations

import pytest

from msight_bus import QueuePolicy
from tests.support.receiving import take
from tests.support.scripted_peers import LIVE, ScriptedPeer, Subscribed, bus_at

QUIET = {"MSIGHT_PING_INTERVAL": "60", "MSIGHT_ANNOUNCE_INTERVAL": "60", "MSIGHT_ANNOUNCE": "false"}
KEPT = {
    QueuePolicy.block(100): slice(None),
    QueuePolicy.drop_oldest(100): slice(None),
    QueuePolicy.drop_newest(100): slice(None),
    QueuePolicy.latest(100): slice(None),
    QueuePolicy.drop_oldest(3): slice(-3, None),
    QueuePolicy.drop_newest(3): slice(3),
    QueuePolicy.latest(1): slice(-2, None),
}
"""By policy, the part of four messages A1 B1 A2 B2 that is delivered."""

live = pytest.mark.parametrize("kind", LIVE)
by_list_and_pattern = pytest.mark.parametrize("by", ["list", "pattern", "both"])


def entries_of(by: str) -> list[str] | str:
    return {"list": ["x.a", "x.b", "x.c"], "pattern": "x.*", "both": ["x.a", "x.*"]}[by]


def encode(peer: ScriptedPeer, topic: str, sequence: int, payload: bytes) -> bytes:
    """Encode a message for the subscription, of all on the last connection, that receives its topic."""
    subscribed = {each.topic: each for each in peer.subscriptions}
    if topic in subscribed:
        return subscribed[topic].message(1, sequence, payload)
    return subscribed["x.*"].message(1, sequence, payload, topic=topic)


def write(peer: ScriptedPeer, sent: list[tuple[str, int, bytes]]) -> None:
    """Write messages in one call."""
    last: Subscribed = peer.subscriptions[-1]
    last.send(*[encode(peer, *each) for each in sent])


def found(messages) -> list[tuple[str, int, bytes]]:
    return [(message.topic, message.sequence, message.payload) for message in messages]


@live
@by_list_and_pattern
@pytest.mark.parametrize("policy", KEPT, ids=lambda policy: f"{policy.when_full}-{policy.max_messages}")
async def test_each_queue_keeps_the_order_over_topics_of_one_write(kind, by, policy):
    peer = ScriptedPeer(kind)
    sent = [("x.a", 1, b"A1"), ("x.b", 1, b"B1"), ("x.a", 2, b"A2"), ("x.b", 2, b"B2")]
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe(entries_of(by), queue=policy) as messages:
        write(peer, sent)
        await at.until(lambda: messages.stats.received == 4)
        expected = sent[KEPT[policy]]
        assert found(await take(messages, len(expected))) == expected
        assert messages.stats.gaps == 0
        assert {topic: stats.received for topic, stats in messages.stats.topics.items() if stats.received} == {
            "x.a": 2,
            "x.b": 2,
        }


@live
@by_list_and_pattern
@pytest.mark.parametrize("sizes", [[100], [10, 100, 1000]], ids=["equal", "mixed"])
@pytest.mark.parametrize("run", [1, 3, 64])
async def test_thousands_of_messages_in_turn_and_in_runs_keep_the_order(kind, by, sizes, run):
    peer = ScriptedPeer(kind)
    sequences = dict.fromkeys(["x.a", "x.b", "x.c"], 0)
    sent = []
    for number in range(3000):
        topic = "x." + "abc"[number // run % 3]
        sequences[topic] += 1
        sent.append((topic, sequences[topic], bytes(sizes[number % len(sizes)])))
    policy = QueuePolicy.drop_oldest(10_000)
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe(entries_of(by), queue=policy) as messages:
        write(peer, sent)
        assert found(await take(messages, 3000)) == sent
        assert (messages.stats.gaps, messages.stats.duplicates) == (0, 0)


@live
async def test_a_subscription_of_one_topic_beside_one_of_several_receives_all_of_its_messages(kind):
    peer = ScriptedPeer(kind)
    sent = [("x." + "abc"[number % 3], 1 + number // 3, b"%d" % number) for number in range(300)]
    async with bus_at(peer, **QUIET) as at, at.bus.subscribe("x.a") as one:
        async with at.bus.subscribe(["x.b", "x.c"]) as several:
            write(peer, sent)
            assert found(await take(several, 200)) == [each for each in sent if each[0] != "x.a"]
            assert found(await take(one, 100)) == [each for each in sent if each[0] == "x.a"]
        write(peer, [("x.a", 101, b"alone"), ("x.a", 102, b"again")])
        assert found(await take(one, 2)) == [("x.a", 101, b"alone"), ("x.a", 102, b"again")]
