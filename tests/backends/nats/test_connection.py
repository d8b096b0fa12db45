"""What a NATS connection makes of an error that belongs to nothing in particular, over a transport of the test's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from msight_bus.backends.nats import connection as nats_connection
from msight_bus.backends.nats.connection import NatsConnection
from msight_bus.backends.pubsub.routes import Route
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.protocol.envelope import TopicCounter


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

    def abort(self):
        self.aborted = True

    def __init__(self):
        self.written = b""
        self.aborted = False

    def get_write_buffer_size(self):
        return 0

    def write(self, data):
        self.written += data

    def writelines(self, parts):
        self.write(b"".join(parts))


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


def route(on_refused=lambda error: None) -> Route:
    return Route("a", None, None, on_refused)


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


async def test_credentials_that_expire_end_the_connection_even_if_the_server_keeps_it():
    lost = Lost()
    connection = connected(lost)
    connection.data_received(b"-ERR 'User Authentication Expired'\r\n")
    assert connection.transport.aborted
    connection.connection_lost(None)
    (reason,) = lost
    assert "User Authentication Expired" in reason


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


async def test_a_permission_that_is_taken_away_ends_the_subscription_whatever_round_trip_is_under_way():
    connection, refusals = connected(Lost()), []
    connection.subscribe(route(refusals.append))
    connection.data_received(b"PONG\r\n")
    asked = connection.ping()
    connection.data_received(b"-ERR 'Permissions Violation for Subscription to \"a\"'\r\nPONG\r\n")
    await asked.answer
    (error,) = refusals
    assert isinstance(error, AuthenticationError)
    assert connection._sids == {}


async def test_a_stream_asks_for_a_round_trip_now_and_then(monkeypatch):
    monkeypatch.setattr(nats_connection, "_PING_EVERY", 10)
    connection, sender, counter = connected(Lost()), SimpleNamespace(run=None), TopicCounter("a", 7)
    for _ in range(25):
        connection.publish(sender, counter, b"", None, None)
    await asyncio.sleep(0)
    assert connection.transport.written.count(b"PING\r\n") == 2
