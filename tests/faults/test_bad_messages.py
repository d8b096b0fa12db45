"""A message that is too large is refused before it is sent; an undecodable message is counted, and the stream continues."""

from __future__ import annotations

import pytest

from msight_bus import BytesData, DecodeError, MessageTooLargeError
from msight_bus.events import Disconnected
from msight_bus.nodes import NodeConfig
from tests.support.ledger import Account
from tests.support.nodes import Collect, running
from tests.support.receiving import take
from tests.support.rig import EVERY, seen
from tests.support.stream import Events, traffic

every = pytest.mark.parametrize("target", EVERY, indirect=True)


@every
async def test_a_message_that_is_too_large_is_refused_and_the_stream_continues(target, book, topic):
    events = Events(book.ledgers)
    async with target.connect(events=events) as sending, target.connect(events=events) as receiving:
        async with traffic(sending, receiving, topic, book.ledgers[topic]) as flow:
            limit = sending.capabilities.max_message_bytes
            for size, headers in ((limit + 1, None), (limit - 1000, {"lens": "w" * 1000})):
                with pytest.raises(MessageTooLargeError) as caught:
                    await sending.publish(topic, bytes(size), headers=headers)
                assert str(caught.value.size) in str(caught.value)
                assert str(caught.value.limit) in str(caught.value)
                assert caught.value.size > caught.value.limit
                await flow.flows()
    assert not seen(events, Disconnected)
    account = book.account()
    assert account == Account(acknowledged=account.acknowledged, delivered=account.acknowledged)


@every
async def test_an_undecodable_message_is_counted_and_the_stream_continues(target, topic):
    config = NodeConfig(name=topic.replace(".", "_"), subscribe_topic_name=topic, subscribe_topic_data_type=BytesData)
    async with target.connect() as bus:
        node = Collect(config)
        async with running(bus, node):
            for payload in (b"\xc1 no MessagePack", BytesData(data=b"1"), bytes(10_000), BytesData(data=b"2")):
                await bus.publish(topic, payload)
            assert [item.data for item in await node.until(2)] == [b"1", b"2"]
            assert node._node_run.meter.undecodable == 2
        again = Collect(config)
        async with running(bus, again):  # on Kafka the undecodable ones are committed
            await bus.publish(topic, BytesData(data=b"3"))
            assert [item.data for item in await again.until(1)] == [b"3"]
            assert again._node_run.meter.undecodable == 0


@every
async def test_a_plain_consumer_gets_a_decode_error_for_an_undecodable_message(target, topic):
    async with target.connect(MSIGHT_KAFKA_MAX_REDELIVERIES="0") as bus:
        async with bus.subscribe(topic, ack="manual") as messages:
            await bus.publish(topic, b"\xc1 no MessagePack")
            await bus.publish(topic, BytesData(data=b"good"))
            bad, good = await take(messages, 2)
            with pytest.raises(DecodeError):
                _ = bad.data
            assert good.data.data == b"good"
            if not bus.capabilities.acknowledgement:
                return
            await bad.nack()
            async with bus.subscribe(f"{topic}.dead", start="earliest") as dead:
                assert (await take(dead, 1))[0].payload == bad.payload
