from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, HostPort, NatsServer, Secret
from msight_bus.settings.addresses import is_loopback, parse_host, parse_host_port, parse_nats_server

LABELS = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join) | st.ip_addresses().map(str)
PORTS = st.integers(1, 65535)
USER_INFO = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="@/"), min_size=1, max_size=20
)


@given(HOSTS, PORTS)
def test_host_and_port_come_back(host, port):
    address = HostPort(parse_host(host), port)
    assert parse_host_port(str(address)) == address
    assert tuple(address) == (parse_host(host), port)


@given(HOSTS, PORTS, st.booleans(), st.none() | USER_INFO)
def test_nats_urls_come_back(host, port, tls, user_info):
    where = HostPort(parse_host(host), port)
    scheme = "tls" if tls else "nats"
    url = f"{scheme}://{user_info}@{where}" if user_info else f"{scheme}://{where}"
    server = parse_nats_server(url)
    assert (server.host, server.port, server.tls) == (where.host, port, tls)
    assert server.get_secret_url() == url
    assert str(server) == f"{scheme}://{where}"


@given(st.text() | st.text(st.sampled_from("ab.:/@[]-1 ")).map(lambda rest: f"nats://{rest}"))
def test_anything_else_is_an_address_or_a_value_error_without_context(text):
    for parse in (parse_host, parse_host_port, parse_nats_server):
        try:
            assert parse(text)
        except ValueError as error:
            assert error.__cause__ is None  # noqa: PT017
            assert error.__suppress_context__ or error.__context__ is None  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nats://a", NatsServer("a", 4222)),
        ("nats://a/", NatsServer("a", 4222)),
        (" TLS://a.example:4443 ", NatsServer("a.example", 4443, tls=True)),
        ("nats://[2001:db8::1]:4222", NatsServer("2001:db8::1", 4222)),
        ("nats://[::1]", NatsServer("::1", 4222)),
        ("a:4333", NatsServer("a", 4333)),
        ("a", NatsServer("a", 4222)),
        ("[::1]:4333", NatsServer("::1", 4333)),
        ("u:p@a", NatsServer("a", 4222, user_info=Secret("u:p"))),
    ],
)
def test_nats_urls(text, expected):
    assert parse_nats_server(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ws://a:80", "WebSocket"),
        ("wss://a", "WebSocket"),
        ("http://a", "neither nats:// nor tls://"),
        ("u:CANARY@", "no valid host"),
        ("a:port", "not host:port"),
        ("nats://u:**********@a", "the mask of a dump"),
        ("nats://", "no valid host"),
        ("nats://@a", "not nats://host:port"),
        ("nats://a/path", "not nats://host:port"),
        ("nats://u:p@b@a", "not nats://host:port"),
        ("nats://u p@a", "not nats://host:port"),
        ("nats://a:0", "port is not in 1 to 65535"),
        ("nats://a:65536", "port is not in 1 to 65535"),
        ("nats://a:port", "not host:port"),
        ("nats://a:1\r\nPUB x", "not host:port"),
        ("nats://[::1", "not host:port"),
        ("nats://[a]:1", "no valid host"),
        ("nats://::1", "not host:port"),
    ],
)
def test_wrong_nats_urls_have_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_nats_server(text)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:",
        ":1",
        "a:b",
        "a:1:2",
        "a:٣",
        "[::1]",
        "::1:9092",
        "[::g]:1",
        "a b:1",
        "a/b:1",
        "kafka://a:1",
        "a..b:1",
        "",
    ],
)
def test_wrong_host_ports(text):
    with pytest.raises(ValueError, match=r"^its? "):
        parse_host_port(text)


@pytest.mark.parametrize("host", ["a" * 64, ".".join(["a" * 60] * 5), "ä", "a b", "a\n", "", "-" * 64, "a@b", "[a]"])
def test_wrong_hosts(host):
    with pytest.raises(ValueError, match=r"^its? "):
        parse_host(f"{host}\x00" if host == "a\n" else host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost.example.com", False),
        ("broker", False),
        ("2001:db8::1", False),
    ],
)
def test_is_loopback(host, expected):
    assert is_loopback(host) is expected


def test_user_info_is_not_shown():
    server = parse_nats_server("nats://user:CANARY@a:4222")
    assert "CANARY" not in f"{server} {server!r} {[server]}"
    assert server.user_info is not None
    assert server.user_info.get_secret_value() == "user:CANARY"


def test_a_host_name_has_at_most_253_characters():
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(longest) == 253
    servers = BusSettings(environ={"MSIGHT_NATS_SERVERS": f"nats://{longest}:4222"}, backend="nats").nats.servers
    assert [server.host for server in servers] == [longest]
    with pytest.raises(ConfigError, match="no valid host name"):
        BusSettings(environ={"MSIGHT_NATS_SERVERS": f"nats://{longest}d:4222"}, backend="nats")
