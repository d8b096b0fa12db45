"""Header blocks, and the commands that the bus sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.protocol import nats
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.nats import parse_headers
from tests.protocol.nats_streams import LIMIT


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"", {}),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0 503\r\n\r\n", {}),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\n\r\n", {"Nats-Last-Consumer": "1016"}),
        (b"NATS/1.0\r\na: 1\r\nb:2\r\nc:  3\r\n\r\n", {"a": "1", "b": "2", "c": " 3"}),
        (b"NATS/1.0\r\na: 1\r\nA: 2\r\na: 3\r\n\r\n", {"a": "3", "A": "2"}),
        (b"NATS/1.0\r\na: b: c\r\nurl: nats://a:4222\r\n\r\n", {"a": "b: c", "url": "nats://a:4222"}),
        (b"NATS/1.0\r\nempty:\r\nno colon\r\n\r\n", {"empty": ""}),
        (b"NATS/1.0\r\na: \xff\r\n\xff: a\r\n\r\n", {"a": "\ufffd", "\ufffd": "a"}),
        (b"NATS/1.0\r\na: \xc3\xa9\r\n\r\n", {"a": "é"}),
    ],
)
def test_header_lines(block, headers):
    assert parse_headers(block) == headers


NAMES = st.text("!#$%&'*+.^_`|~-aZ09", min_size=1, max_size=12)
VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20).map(str.strip)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_headers_come_back(headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert parse_headers(f"NATS/1.0\r\n{lines}\r\n".encode()) == headers


@given(st.binary(max_size=80))
def test_any_header_block_is_read(block):
    assert all(isinstance(text, str) for pair in parse_headers(block).items() for text in pair)


# -- sending

KEYS = st.none() | st.text(max_size=5)


@given(st.lists(st.tuples(st.binary(max_size=60), KEYS, st.dictionaries(NAMES, VALUES, max_size=2)), max_size=10))
def test_what_is_published_is_what_is_received(messages):
    counter = TopicCounter("a.b", 7, 41)
    decoder = nats.decoder(LIMIT)
    found = []
    for sequence, (payload, key, headers) in enumerate(messages, 42):
        headers.pop("msight", None)
        parts, size = nats.publish(counter, payload, key, headers, 9, LIMIT)
        line, _, body = b"".join(parts).partition(b"\r\n")
        verb, subject, *sizes = line.split()
        assert (verb, subject, len(body) - 2) == (b"HPUB", b"a.b", size)
        assert counter.sequence == sequence
        decoder.feed(b"HMSG a.b 5 %b\r\n%b" % (b" ".join(sizes), body))
        for address, frames, foreign in decoder.take():
            assert address == nats.address_of(b"a.b", b"5")
            found += [(frame[1:4], None, {}, frame[4]) for frame in frames or ()]
            found += [nats.decode_metadata(*one) for one in foreign]
    assert found == [((7, i, 9), key, headers, payload) for i, (payload, key, headers) in enumerate(messages, 42)]


def test_the_other_commands():
    commands = nats.subscribe(b"a.*", b"5"), nats.subscribe(b"a", b"6", b"group"), nats.unsubscribe(b"5"), nats.PING
    assert b"".join(commands) == b"SUB a.* 5\r\nSUB a group 6\r\nUNSUB 5\r\nPING\r\n"
