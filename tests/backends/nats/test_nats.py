"""What only NATS has: headers that any client reads, and a server that says what it takes."""

from __future__ import annotations

import asyncio

import nats as nats_py
import pytest

from msight_bus import AuthenticationError, brokers
from msight_bus.protocol.envelope import parse_header
from tests.support.brokers import Backend
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.receiving import take
from tests.support.rig import own_broker
from tests.support.servers import variables


async def client_of(nats):
    return await nats_py.connect(nats.env["MSIGHT_NATS_SERVERS"].strip("[]'\""))


async def test_other_clients_read_headers_and_payload(nats, topic):
    client = await client_of(nats)
    subscription = await client.subscribe(topic)
    await client.flush()
    async with nats.connect() as bus:
        await bus.publish(topic, b"exactly this", headers={"traceparent": "00-ab-cd-01"}, key="lane 3")
        await bus.publish(topic, b"", key="")
    message = await subscription.next_msg(timeout=5)
    assert message.data == b"exactly this"
    assert message.headers["traceparent"] == "00-ab-cd-01"
    assert parse_header(message.headers["msight"].split(" ")[0])[1] == 1
    assert (await subscription.next_msg(timeout=5)).headers["msight"].endswith(' ""')
    await client.close()


async def test_other_makes_publish_with_and_without_headers(nats, topic):
    client = await client_of(nats)
    async with nats.connect() as bus, bus.subscribe(topic) as messages:
        await client.publish(topic, b"plain")
        await client.publish(topic, b"with", headers={"A": "b", "msight": "junk"})
        await client.publish(topic, b"", reply="inbox.1")
        await client.flush()
        plain, with_headers, empty = await take(messages, 3)
    assert (plain.payload, dict(plain.headers), plain.sequence, plain.published_at) == (b"plain", {}, None, None)
    assert (with_headers.payload, with_headers.headers["A"], with_headers.sequence) == (b"with", "b", None)
    assert empty.payload == b""
    await client.close()


async def test_the_limit_is_the_servers_max_payload(topic):
    with brokers.start("nats", config=["max_payload: 4096"]) as broker:
        async with Backend("nats", dict(broker.env)).connect() as bus, bus.subscribe(topic) as messages:
            assert bus.capabilities.max_message_bytes == 4096
            largest = 4096 - len("NATS/1.0\r\nmsight: ") - 48 - 4
            await bus.publish(topic, bytes(largest))
            assert len((await take(messages, 1))[0].payload) == largest


async def test_a_server_of_the_list_that_is_down_is_passed_over(nats, topic):
    up = nats.env["MSIGHT_NATS_SERVERS"].strip("[]'\"")
    down = f"nats://127.0.0.1:{brokers.free_port()}"
    for _ in range(3):
        async with nats.connect(MSIGHT_NATS_SERVERS=f"{down},{up}") as bus, bus.subscribe(topic) as messages:
            await bus.publish(topic, b"x")
            await take(messages, 1)


async def test_a_header_of_zeros_is_none_of_ours(nats, topic):
    client = await client_of(nats)
    try:
        async with nats.connect() as bus, bus.subscribe(topic) as messages:
            for _ in range(2):
                await client.publish(topic, b"x", headers={"msight": "0" * 48})
            await client.flush()
            first, second = await take(messages, 2)
            assert (messages.stats.duplicates, messages.stats.missing) == (0, 0)
    finally:
        await client.close()
    for message in (first, second):
        assert (message.session, message.sequence, message.published_at) == (None, None, None)


@pytest.mark.parametrize("names_the_sid", [True, False])
async def test_a_permission_that_a_reload_takes_away_ends_that_subscription_alone(names_the_sid):
    """nats-server 2.15 names the id of the subscription, older servers only the subject."""
    sids: dict[bytes, bytes] = {}
    taken = False

    def answer(command):
        nonlocal taken
        if command.verb == "SUB":
            sids[command.words[0]] = command.words[-1]
        if command.verb == "PING" and taken:
            taken = False
            sid = b' (sid "%b")' % sids[b"a"] if names_the_sid else b""
            refusal = b"-ERR 'Permissions Violation for Subscription to \"a\"%b'\r\n" % sid
            return refusal + b"MSG b %b 1\r\nx\r\nPONG\r\n" % sids[b"b"]
        return None

    async with fake(Peer("nats", answer)) as way:
        backend = Backend("nats", variables("nats", way.port))
        async with backend.connect(MSIGHT_PING_INTERVAL="0.1") as bus:
            async with bus.subscribe("a") as refused, bus.subscribe("b") as kept:
                taken = True
                with pytest.raises(AuthenticationError, match="Permissions Violation"):
                    await take(refused, 1)
                assert (await take(kept, 1))[0].payload == b"x"
        assert way.connections == 1


async def test_messages_of_a_mapped_subject_have_the_name_that_the_server_gives_them():
    """(nsc 632) One subject for each topic keeps the counts; a share of the messages on another subject is missing."""
    mappings = ["mappings {", "  'cam.*.raw': 'site.raw.$1'", "  lossy: [{destination: lossy, weight: 50%}]", "}"]
    with own_broker("nats", mappings) as (_, backend):
        async with backend.connect() as bus, bus.subscribe(["site.>", "lossy"]) as messages:
            for _ in range(100):
                for topic in ("cam.ne.raw", "lossy", "cam.sw.raw"):
                    await bus.publish(topic, b"x")
            await bus.publish("site.end", b"x")
            async with asyncio.timeout(20):
                while (await anext(messages)).topic != "site.end":
                    pass
            topics = messages.stats.topics
            for name in ("site.raw.ne", "site.raw.sw"):
                assert (topics[name].received, topics[name].gaps, topics[name].duplicates) == (100, 0, 0)
            assert topics["lossy"].missing > 0
