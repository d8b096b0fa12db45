"""The servers that a NATS server announces."""

from __future__ import annotations

import pytest

from msight_bus.backends.nats.announced_servers import MAX_ANNOUNCED, Candidate, read_announced
from msight_bus.settings import NatsServer, Secret

SECRET = Secret("cam:word")
SEED = Candidate(NatsServer("nats.example", 4222, tls=True, user_info=SECRET), "nats.example")


@pytest.mark.parametrize(
    ("url", "host", "tls_name"),
    [
        ("10.0.0.1:4223", "10.0.0.1", "nats.example"),
        ("[::1]:4223", "::1", "nats.example"),
        ("other.example:4223", "other.example", "other.example"),
    ],
)
def test_it_is_entered_as_the_server_that_announces_it(url, host, tls_name):
    assert read_announced([url], SEED) == (Candidate(NatsServer(host, 4223, True, SECRET), tls_name),)


def test_an_address_that_an_address_announces_is_verified_as_itself():
    seed = Candidate(NatsServer("127.0.0.1", 4222), "127.0.0.1")
    (found,) = read_announced(["10.0.0.1:4223"], seed)
    assert found.tls_name == "10.0.0.1"


@pytest.mark.parametrize(
    "urls",
    [
        *([], None, {}, "10.0.0.1:1", 5, [None], [5], [[]]),
        *([""], ["a"], [":1"], ["a:0"], ["a:99999"], ["\x1b[2J:1"], ["nats://a:1"], ["u:p@a:1"], ["a" * 400 + ":1"]),
    ],
)
def test_nonsense_is_passed_over(urls):
    assert read_announced(urls, SEED) == ()


def test_their_number_is_bounded():
    urls = [f"10.0.{number // 256}.{number % 256}:4222" for number in range(10_000)]
    assert len(read_announced(urls, SEED)) == MAX_ANNOUNCED
