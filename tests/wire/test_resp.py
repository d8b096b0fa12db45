"""The RESP2 parser gives the same however the stream is cut, and the same as hiredis."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.wire import envelope
from msight_bus.wire.resp import RespError, RespParser


def bulk(data):
    return b"$%d\r\n%b\r\n" % (len(data), data)


def message(channel, data):
    return b"*3\r\n" + bulk(b"message") + bulk(channel) + bulk(data)


def framed(sequence, payload, *, key=None):
    return envelope.prefix(7, sequence, 1_700_000_000_000_000_000, envelope.pack_extension(key, None)) + payload


STREAM = b"".join(
    [
        b"*3\r\n" + bulk(b"subscribe") + bulk(b"a.b") + b":1\r\n",
        *(message(b"a.b", framed(i, b"payload %d" % i)) for i in range(1, 10)),  # a run
        message(b"c", framed(1, b"payload 1")),
        message(b"a.b", framed(10, b"\r\n*3\r\n$7\r\nmessage\r\n$1\r\n")),
        message(b"a.b", framed(11, b"\r\n*3\r\n$7\r\nmessage\r\n$1\r\n")),
        message(b"a.b", b"raw"),
        message(b"a.b", b""),
        message(b"a.b", b"\xc1MB\x01 looks like ours and is too short"),
        b"*2\r\n" + bulk(b"pong") + bulk(b""),
        b"-NOPERM no such right\r\n",
        message(b"a.b", framed(12, b"with a key", key="lane 3")),
        message(b"a.b", framed(13, b"with a key", key="lane 3")),
        b"+PONG\r\n",
        b"*3\r\n" + bulk(b"unsubscribe") + b"$-1\r\n" + b":0\r\n",
    ]
)


def parse(*chunks):
    """Channels with their whole data, and replies, in the order of the stream."""
    parser = RespParser()
    found = []
    for chunk in chunks:
        parser.feed(chunk)
        done = 0
        for position, error in parser.replies:
            found += map(whole, parser.messages[done:position])
            found.append(error)
            done = position
        found += map(whole, parser.messages[done:])
    return found


def whole(arrival):
    channel, meta, payload = arrival
    if not meta:
        return channel, payload
    return channel, envelope.prefix(*envelope.unpack_meta(meta[:24]), meta[24:]) + payload


def parse_with_hiredis(stream):
    reader = hiredis.Reader()
    reader.feed(stream)
    found = []
    while (reply := reader.gets()) is not False:
        if isinstance(reply, list) and reply[0] == b"message":
            found.append((reply[1], reply[2]))
        else:
            found.append(str(reply) if isinstance(reply, hiredis.ReplyError) else None)
    return found


def test_it_reads_what_hiredis_reads():
    assert parse(STREAM) == parse_with_hiredis(STREAM)
    assert sum(isinstance(event, tuple) for event in parse(STREAM)) == 17


def test_the_metadata_is_told_from_the_payload():
    parser = RespParser()
    parser.feed(STREAM)
    assert [payload for _, meta, payload in parser.messages if not meta] == [
        b"raw", b"", b"\xc1MB\x01 looks like ours and is too short",
    ]  # fmt: skip
    assert [len(meta) for _, meta, _ in parser.messages if meta].count(24) == 12
    assert parser.messages[3] == (b"a.b", framed(4, b"")[8:], b"payload 4")


def test_every_cut_in_two_gives_the_same():
    expected = parse(STREAM)
    for place in range(len(STREAM) + 1):
        assert parse(STREAM[:place], STREAM[place:]) == expected


def test_byte_by_byte_gives_the_same():
    assert parse(*[STREAM[i : i + 1] for i in range(len(STREAM))]) == parse(STREAM)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same(places):
    chunks = [STREAM[start:end] for start, end in pairwise([0, *sorted(places), len(STREAM)])]
    assert parse(*chunks) == parse(STREAM)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b.c"]), st.binary(max_size=80), st.booleans()), max_size=40))
def test_any_messages_are_read_as_hiredis_reads_them(messages):
    stream = b"".join(
        message(channel, framed(i, data) if ours else data) for i, (channel, data, ours) in enumerate(messages)
    )
    assert parse(stream) == parse_with_hiredis(stream)


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_incomplete_and_nothing_else(garbage):
    try:
        parse(garbage, STREAM)
    except RespError:
        pass


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"*3\r\n$7\r\nmessage\r\n$x\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:5\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$999999999\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$-1\r\n",
        b"*1000000\r\n",
        b"*1\r\n$1000000\r\n",
        b"+" + b"x" * 70_000,
    ],
)
def test_what_is_no_resp_is_refused_before_memory_is_taken(wrong):
    tracemalloc.start()
    with pytest.raises(RespError):
        parse(wrong)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_large_payload_is_joined_once():
    payload = bytes(4_000_000)
    stream = message(b"a", framed(1, payload))
    parser = RespParser()
    tracemalloc.start()
    for start in range(0, len(stream), 65536):
        parser.feed(stream[start : start + 65536])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parser.messages[0][2] == payload
    assert peak < 3.2 * len(payload)  # the chunks, their whole, the payload
