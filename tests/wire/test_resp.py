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


def parse(*chunks, at_once=False):
    """Channels with their whole data, and replies, in the order of the stream; ``at_once`` takes them after the last chunk."""
    parser = RespParser()
    found = []
    for chunk in chunks:
        if (only := parser.only(chunk)) is not None:
            found += whole((only[0], [only[1]], []))
            continue
        parser.feed(chunk)
        if not at_once:
            found += taken(parser)
    return found + taken(parser)


def taken(parser):
    segments, replies = parser.take()
    done, found = 0, []
    for position, error in [*replies, (len(segments), ...)]:
        found += [message for segment in segments[done:position] for message in whole(segment)]
        found += [] if error is ... else [error]
        done = position
    return found


def whole(segment):
    channel, frames, others = segment
    if frames is not None:
        return [(channel, envelope.prefix(*frame[1:4], b"") + frame[4]) for frame in frames]
    return [
        (channel, envelope.prefix(*envelope.unpack_meta(meta[:24]), meta[24:]) + payload if meta else payload)
        for meta, payload in others
    ]


def by_channel(found):
    """Replies stay where they are; between them each channel's messages, in their order."""
    groups, group = [], {}
    for event in found:
        if isinstance(event, tuple):
            group.setdefault(event[0], []).append(event[1])
        else:
            groups += [group, event]
            group = {}
    return [*groups, group]


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
    assert by_channel(parse(STREAM)) == by_channel(parse_with_hiredis(STREAM))
    assert sum(isinstance(event, tuple) for event in parse(STREAM)) == 17


def test_the_metadata_is_told_from_the_payload():
    parser = RespParser()
    parser.feed(STREAM)
    segments, _ = parser.take()
    assert [payload for _, _, others in segments for meta, payload in others if not meta] == [
        b"raw", b"", b"\xc1MB\x01 looks like ours and is too short",
    ]  # fmt: skip
    frames = [(channel, *frame[1:]) for channel, frames, _ in segments for frame in frames or ()]
    assert len(frames) == 12
    assert frames[3] == (b"a.b", 7, 4, 1_700_000_000_000_000_000, b"payload 4")


def test_every_cut_in_two_gives_the_same():
    expected = by_channel(parse(STREAM))
    for place in range(len(STREAM) + 1):
        assert by_channel(parse(STREAM[:place], STREAM[place:])) == expected
        assert by_channel(parse(STREAM[:place], STREAM[place:], at_once=True)) == expected


def test_byte_by_byte_gives_the_same():
    assert by_channel(parse(*[STREAM[i : i + 1] for i in range(len(STREAM))])) == by_channel(parse(STREAM))


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same(places):
    chunks = [STREAM[start:end] for start, end in pairwise([0, *sorted(places), len(STREAM)])]
    assert by_channel(parse(*chunks)) == by_channel(parse(STREAM))


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b.c"]), st.binary(max_size=80), st.booleans()), max_size=40))
def test_any_messages_are_read_as_hiredis_reads_them(messages):
    stream = b"".join(
        message(channel, framed(i, data) if ours else data) for i, (channel, data, ours) in enumerate(messages)
    )
    assert by_channel(parse(stream)) == by_channel(parse_with_hiredis(stream))


@given(st.lists(st.integers(0, 9), max_size=12))
def test_chunks_of_one_message_give_the_same(sequences):
    chunks = [message(b"a.b", framed(i, b"payload %d" % i)) for i in sequences]
    cut = [part for chunk in chunks[:3] for part in (chunk[:70], chunk[70:])]
    assert by_channel(parse(*chunks, *cut, *chunks)) == by_channel(
        parse_with_hiredis(b"".join([*chunks, *cut, *chunks]))
    )


def test_the_third_chunk_of_one_message_is_taken_as_one():
    parser = RespParser()
    chunk = message(b"a.b", framed(1, b"payload"))
    for _ in range(2):
        assert parser.only(chunk) is None
        parser.feed(chunk)
        parser.take()
    assert parser.only(chunk) == (b"a.b", (chunk[: -24 - 9], 7, 1, 1_700_000_000_000_000_000, b"payload"))
    parser.feed(chunk[:-1])
    assert parser.only(chunk) is None  # it is not where a frame begins


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
    assert parser.take()[0][0][1][0][4] == payload
    assert peak < 2.2 * len(payload)  # the chunks and the payload
