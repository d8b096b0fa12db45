from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from msight_bus.data import BytesData, Data
from msight_bus.data.types import DATA
from msight_bus.errors import DecodeError, UnsupportedError
from msight_bus.message import NO_HEADERS, Message
from msight_bus.settings import Limits


class Log:
    """A backend that acknowledges (message.Settlement)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Message]] = []

    def settle(self, message: Message) -> None:
        self.calls.append(("settle", message))

    async def release(self, message: Message) -> None:
        self.calls.append(("release", message))


def test_what_a_foreign_publisher_did_not_send_is_none():
    message = Message("a.b", b"payload")
    assert (message.key, message.session, message.sequence, message.published_at, message.position) == (None,) * 5
    assert (message.topic, message.payload, message.headers, message.redeliveries) == ("a.b", b"payload", NO_HEADERS, 0)


def test_repr_shows_how_much_and_not_what():
    message = Message(
        "a.b", b"secret payload", {"token": "secret"}, "secret key", sequence=7, _data=BytesData(data=b"secret")
    )
    assert repr(message) == "Message(topic='a.b', 14 bytes, sequence=7)"
    assert repr([message]) == "[Message(topic='a.b', 14 bytes, sequence=7)]"


def test_data_is_decoded_on_first_use_and_once():
    decoded: list[bytes] = []

    def decode(payload):
        decoded.append(payload)
        return BytesData.deserialize(payload)

    payload = BytesData(data=b"x").serialize()
    message = Message("t", payload, _decode=decode)
    assert decoded == []
    assert message.data.data == b"x"
    assert message.data is message.data
    assert decoded == [payload]


def test_a_payload_that_is_no_data_is_an_error_each_time():
    message = Message("t", b"raw")
    for _ in range(2):
        with pytest.raises(
            DecodeError,
            match="^The message on 't' cannot be decoded as Data: The payload is not a MessagePack map.*; use message.payload",
        ):
            _ = message.data


def test_the_view_is_of_the_payload_and_read_only():
    message = Message("t", b"payload")
    assert message.view == b"payload"
    assert message.view.readonly
    assert message.view.obj is message.payload


class Nested(Data):
    value: Any = None


@pytest.mark.parametrize("limits", [Limits(max_decoded_bytes=500), Limits(max_nesting=2)])
def test_decoding_is_bounded_by_the_limits_of_the_bus(limits):
    payload = Nested(value=[[b"x" * 500]]).serialize()
    assert Message("t", payload).data.value == [[b"x" * 500]]
    with pytest.raises(DecodeError):
        decode = partial(DATA.decode, max_bytes=limits.max_decoded_bytes, max_nesting=limits.max_nesting)
        _ = Message("t", payload, _decode=decode).data


def test_messages_are_compared_by_identity():
    one, other = Message("t", b"x"), Message("t", b"x")
    assert one != other
    assert len({one, other, one}) == 2


async def test_where_nothing_is_acknowledged_ack_does_nothing_and_nack_says_what_to_use():
    message = Message("t", b"x")
    assert await message.ack() is None
    with pytest.raises(UnsupportedError, match="MSIGHT_PUBSUB_BACKEND=kafka"):
        await message.nack()


async def test_ack_and_nack_reach_the_log():
    log = Log()
    message = Message("t", b"x", _settlement=log)
    await message.ack()
    await message.nack()
    assert log.calls == [("settle", message), ("release", message)]
