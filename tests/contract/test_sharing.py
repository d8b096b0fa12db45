"""Two subscriptions of one topic share nothing: neither the messages nor what hangs on them."""

from __future__ import annotations

from collections.abc import MutableMapping

import pytest

from msight_bus import BytesData
from tests.support.receiving import take

N = 200


async def test_two_subscriptions_of_one_topic_never_share_a_message(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as one, bus.subscribe(topic) as other:
        async with bus.publisher(topic) as publisher:  # written together, so that they are read together
            for number in range(N):
                await publisher.send(b"%d" % number, headers={"a": "b"} if number % 2 else None)
        pairs = list(zip(await take(one, N), await take(other, N), strict=True))
    assert all(left is not right for left, right in pairs)


async def test_decoded_data_is_not_shared_either(backend, topic):
    async with backend.connect() as bus, bus.subscribe(topic) as one, bus.subscribe(topic) as other:
        async with bus.publisher(topic) as publisher:
            for _ in range(N):
                await publisher.send(BytesData(sensor_name="ne", data=b"x"))
        pairs = list(zip(await take(one, N), await take(other, N), strict=True))
    for left, right in pairs:
        left.data.sensor_name = "changed"
        assert right.data.sensor_name == "ne"


@pytest.mark.parametrize("headers", [{"a": "b"}, {}, None], ids=["some", "empty", "none"])
async def test_headers_are_read_only(backend, topic, headers):
    async with backend.connect() as bus, bus.subscribe(topic) as one, bus.subscribe(topic) as other:
        await bus.publish(topic, b"x", headers=headers)
        (message,) = await take(one, 1)
        assert not isinstance(
            message.headers, MutableMapping
        )  # before trying: an empty one is shared with all messages
        with pytest.raises(TypeError):
            message.headers["a"] = "changed"
        assert dict((await take(other, 1))[0].headers) == dict(message.headers) == (headers or {})
