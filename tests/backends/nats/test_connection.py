"""What a NATS connection makes of an error that belongs to nothing in particular, over a transport of the test's."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus.backends.nats.connection import NatsConnection
from msight_bus.backends.pubsub.connection import Route
from msight_bus.errors import BusError


class Transport:
    """Takes what is written."""

    def get_extra_info(self, name):
        return None

    def set_protocol(self, protocol):
        pass

    def is_closing(self):
        return False

    def resume_reading(self):
        pass

    def write(self, data):
        pass

    writelines = write


class Lost(list):
    """The reasons that were told."""

    def __call__(self, connection, reason):
        self.append(str(reason))


def connected(lost: Lost) -> NatsConnection:
    connection = NatsConnection(
        Transport(),
        lost,
        lambda *_: None,
        lambda *_: None,
        max_payload=1 << 20,
        max_received=1 << 20,
        on_info=lambda info: None,
    )
    connection.take_over(b"")
    return connection


def route() -> Route:
    return Route("a", None, None, lambda error: None)


@pytest.mark.parametrize("answered", [True, False])
async def test_an_error_before_an_answer_is_the_reason_of_an_end_without_that_answer_only(answered):
    lost = Lost()
    connection = connected(lost)
    request = connection.subscribe(route())
    connection.data_received(b"-ERR 'Something Else'\r\n" + b"PONG\r\n" * answered)
    connection.connection_lost(None)
    with pytest.raises(BusError):
        await request.answer
    (reason,) = lost
    assert ("Something Else" in reason) is not answered


async def test_subscriptions_that_were_left_or_refused_leave_nothing_behind():
    connection = connected(Lost())
    left, refused = route(), route()
    connection.subscribe(left)
    connection.data_received(b"PONG\r\n")
    connection.unsubscribe(left)
    connection.subscribe(refused)
    connection.data_received(b"PONG\r\n-ERR 'Something Else'\r\nPONG\r\n")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (connection._sids, connection._routes, connection._addresses) == ({}, {}, {})
