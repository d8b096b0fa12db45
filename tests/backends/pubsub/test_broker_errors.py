"""The tables of what the error texts of Redis and NATS mean."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError as RedisAuthenticationError
from redis.exceptions import ResponseError

from msight_bus import AuthenticationError, BusError
from msight_bus.backends.failover import Meaning
from msight_bus.backends.nats import errors as nats_errors
from msight_bus.backends.redis import errors as redis_errors

OF_REDIS = {
    "WRONGPASS invalid username-password pair or user is disabled.": Meaning.CREDENTIALS,
    "NOAUTH Authentication required.": Meaning.CREDENTIALS,
    "ERR invalid password": Meaning.CREDENTIALS,
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is "
    "correct?": Meaning.CREDENTIALS,
    "ERR Client sent AUTH, but no password is set": Meaning.CREDENTIALS,
    "NOPERM User alice has no permissions to run the 'role' command": Meaning.PERMISSION,
    "NOPERM No permissions to access a channel": Meaning.PERMISSION,
    "LOADING Redis is loading the dataset in memory": Meaning.TEMPORARY,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": Meaning.TEMPORARY,
    "OOM command not allowed when used memory > 'maxmemory'.": Meaning.TEMPORARY,
    "ERR max number of clients reached": Meaning.TEMPORARY,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": Meaning.TEMPORARY,
    "CLUSTERDOWN The cluster is down": Meaning.TEMPORARY,
    "": Meaning.TEMPORARY,
}
OF_NATS = {
    "Authorization Violation": Meaning.CREDENTIALS,
    "User Authentication Expired": Meaning.CREDENTIALS,
    "User Authentication Revoked": Meaning.CREDENTIALS,
    "Account Authentication Expired": Meaning.CREDENTIALS,
    "Authentication Expired": Meaning.CREDENTIALS,
    'Permissions Violation for Publish to "a.b"': Meaning.PERMISSION,
    "Authentication Timeout": Meaning.TEMPORARY,
    "Maximum Connections Exceeded": Meaning.TEMPORARY,
    "maximum account active connections exceeded": Meaning.TEMPORARY,
    "Stale Connection": Meaning.TEMPORARY,
    "Slow Consumer": Meaning.TEMPORARY,
    "": Meaning.TEMPORARY,
}


@pytest.mark.parametrize(("text", "meaning"), OF_REDIS.items())
def test_an_error_reply_of_redis(text, meaning):
    assert redis_errors.meaning_of(text) is meaning
    kind = BusError if meaning is Meaning.TEMPORARY else AuthenticationError
    assert type(redis_errors.broker_error(text)) is kind


@pytest.mark.parametrize(("text", "meaning"), OF_NATS.items())
@pytest.mark.parametrize("form", ["{}", "'{}'", "nats: '{}'"])
def test_an_error_of_nats(text, meaning, form):
    assert nats_errors.meaning_of(form.format(text)) is meaning


def test_each_line_of_the_tables_is_met_by_a_text():
    for start, _ in redis_errors.REFUSALS:
        assert any(text.startswith(start) for text in OF_REDIS)
    for start, _ in nats_errors.REFUSALS:
        assert any(text.lower().startswith(start) for text in OF_NATS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Permissions Violation for Publish to "a.b"', ("publish", "a.b", None)),
        ('Permissions Violation for Subscription to "a"', ("subscription", "a", None)),
        ('Permissions Violation for Subscription to "a" (sid "3")', ("subscription", "a", "3")),
        ('Permissions Violation for Subscription to "a" using queue "q"', ("subscription", "a", None)),
        ('Permissions Violation for Subscription to "a" using queue "q" (sid "12")', ("subscription", "a", "12")),
        ('Permissions Violation for Publish with Reply of "a"', None),
        ("Authorization Violation", None),
    ],
)
def test_a_refused_subject_of_nats(text, expected):
    assert nats_errors.refused_subject(text) == expected


def test_a_reply_is_found_behind_what_redis_py_makes_of_it():
    without_code = RedisAuthenticationError("invalid password", status_code="ERR")
    assert redis_errors.find_reply(without_code) == "ERR invalid password"
    buried = ConnectionError("Error connecting")
    buried.__cause__ = ResponseError("MISCONF Errors writing to the AOF file")
    assert redis_errors.find_reply(buried) == "MISCONF Errors writing to the AOF file"
    assert redis_errors.find_reply(ConnectionError("Connection refused")) is None
