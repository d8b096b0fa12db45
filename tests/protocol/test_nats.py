"""The decoder reads the same however the stream is cut, and the same as the parser of nats-py."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.protocol import nats
from msight_bus.protocol.stream_decoder import Reply
from tests.protocol.nats_streams import (
    ARRIVALS,
    BLOCK,
    LIMIT,
    RECORDED,
    as_nats_py,
    by_subscription,
    cut,
    events,
    ours,
    parse,
    parse_as_nats_py,
)

# -- however it is cut


def test_the_recorded_stream_is_read_as_it_was_sent():
    replies = [event.kind for event in parse(RECORDED) if isinstance(event, Reply)]
    assert replies == [
        *("INFO", "OK", "PONG", "INFO", "OK", "OK", "OK", "OK"),
        *["OK"] * 5,
        *("error", "error", "OK", "PONG", "PING", "PING", "error"),
    ]
    assert [event for event in parse(RECORDED) if not isinstance(event, Reply)] == ARRIVALS
    assert parse(RECORDED)[-1] == Reply("error", b"Stale Connection")


def test_every_cut_in_two_gives_the_same():
    whole = by_subscription(parse(RECORDED))
    for place in range(len(RECORDED) + 1):
        assert by_subscription(parse(*cut(RECORDED, place))) == whole
        assert by_subscription(parse(*cut(RECORDED, place), at_once=True)) == whole


def test_byte_by_byte_gives_the_same():
    assert by_subscription(parse(*[RECORDED[i : i + 1] for i in range(len(RECORDED))])) == by_subscription(
        parse(RECORDED)
    )


@given(st.lists(st.integers(0, len(RECORDED)), max_size=60), st.integers(1, 30), st.integers(0, 9))
def test_any_cut_and_any_limit_give_the_same(places, limit, pause):
    found = parse(*cut(RECORDED, *places), limit=limit, pause=pause)
    assert by_subscription(found) == by_subscription(parse(RECORDED))


def test_a_message_is_there_with_its_last_byte_and_not_before():
    decoder = nats.decoder(LIMIT)
    stream = b"HMSG a.b 27 96 101\r\n" + BLOCK + b"hello\r\n"
    for i in range(len(stream) - 1):
        decoder.feed(stream[i : i + 1])
        assert events(decoder) == []
    decoder.feed(stream[-1:])
    assert events(decoder) == [(b"a.b 27", BLOCK, b"hello")]
    decoder.feed(b"PONG\r\n")
    assert events(decoder) == [Reply("PONG")]


# -- as nats-py reads it

SUBJECTS = st.text("abcXYZ019_-.", min_size=1, max_size=12).map(str.encode)
SIDS = st.integers(1, 10**6)
REPLIES = st.just(b"") | SUBJECTS.map(lambda subject: subject + b" ")
PAYLOADS = st.binary(max_size=80) | st.sampled_from([b"\r\n", b"PING\r\n", b"\r\nMSG a 1 5\r\n", b"\r", b"x" * 9000])
# A header block is never empty: NATS/1.0 is part of it (and nats-py was seen to read an HMSG of 0 header bytes differently).
BLOCKS = st.binary(max_size=40).map(lambda more: b"NATS/1.0\r\n" + more)


@st.composite
def frames(draw) -> bytes:
    kind = draw(st.sampled_from(["MSG", "HMSG", "other"]))
    if kind == "other":
        info = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
        line = st.sampled_from([b"PING", b"PONG", b"+OK", b"-ERR 'Slow Consumer'"])
        return draw(line | info.map(lambda found: b"INFO " + json.dumps(found).encode())) + b"\r\n"
    subject, sid, reply, payload = draw(SUBJECTS), draw(SIDS), draw(REPLIES), draw(PAYLOADS)
    block = draw(BLOCKS) if kind == "HMSG" else b""
    sizes = b"%d %d" % (len(block), len(block + payload)) if kind == "HMSG" else b"%d" % len(payload)
    return b"%b %b %d %b%b\r\n%b%b\r\n" % (kind.encode(), subject, sid, reply, sizes, block, payload)


def test_the_recorded_stream_is_read_as_nats_py_reads_it():
    assert by_subscription(as_nats_py(parse(RECORDED))) == by_subscription(parse_as_nats_py(RECORDED))
    assert as_nats_py(parse(RECORDED, ordered=True)) == parse_as_nats_py(RECORDED)


@given(st.lists(frames(), max_size=8), st.lists(st.integers(0, 2000), max_size=10))
def test_any_stream_is_read_as_nats_py_reads_it(sent, places):
    stream = b"".join(sent)
    found = parse(*cut(stream, *[min(place, len(stream)) for place in places]))
    assert by_subscription(as_nats_py(found)) == by_subscription(parse_as_nats_py(stream))
    found = parse(*cut(stream, *[min(place, len(stream)) for place in places]), ordered=True)
    assert as_nats_py(found) == parse_as_nats_py(stream)


# -- cost


def calls_while(feed: Callable[[], None]) -> Counter[str]:
    """How often C functions were called, by name."""
    calls: Counter[str] = Counter()

    def watch(_frame, event, function):
        if event == "c_call":
            calls[function.__name__] += 1

    sys.setprofile(watch)
    try:
        feed()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("block", [b"", b"NATS/1.0\r\n\r\n"], ids=["MSG", "HMSG"])
def test_a_payload_of_many_chunks_is_joined_once(block):
    payload = bytes(8 * 1024 * 1024)
    line = b"HMSG a 1 12 %d\r\n" % (12 + len(payload)) if block else b"MSG a 1 %d\r\n" % len(payload)
    stream = line + block + payload + b"\r\nPING\r\n"
    chunks = cut(stream, *range(16 * 1024, len(stream), 16 * 1024))
    decoder = nats.decoder(LIMIT)

    def feed():
        for chunk in chunks:
            decoder.feed(chunk)

    calls = calls_while(feed)
    assert len(chunks) > 500
    assert calls["join"] == 1
    assert calls["find"] < 10  # nor is the line read again with every chunk
    assert events(decoder) == [(b"a 1", block, payload), Reply("PING")]


def test_payloads_are_copies_that_do_not_keep_the_chunk():
    decoder = nats.decoder(LIMIT)
    tracemalloc.start()
    try:
        decoder.feed(b"MSG a 1 3\r\nabc\r\nMSG b 2 %d\r\n" % 1_000_000 + bytes(1_000_000) + b"\r\n")
        kept = events(decoder)[0]
        decoder.feed(b"")
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept == (b"a 1", b"", b"abc")
    assert current < 100_000


# -- runs of equal frames


RUN = b"".join(
    [
        *(ours(b"a.b", b"1", i, b"payload %d" % i) for i in range(1, 10)),
        ours(b"c", b"2", 1, b"payload 1"),
        *(ours(b"a.b", b"1", i, b"\r\nMSG a 1 9\r\n") for i in range(10, 13)),
        b"PING\r\n",
        *(ours(b"a.b", b"1", i, b"payload %d" % i) for i in range(1, 4)),
    ]
)


def test_our_own_header_comes_as_its_digits_in_a_run_as_outside():
    decoder = nats.decoder(LIMIT)
    decoder.feed(RUN)
    one, two, ping, three = decoder.take()
    assert [(address, [frame[2] for frame in frames]) for address, frames, _ in (one, two, three)] == [
        (b"a.b 1", list(range(1, 13))),
        (b"c 2", [1]),
        (b"a.b 1", [1, 2, 3]),
    ]
    assert ping == Reply("PING")
    assert one[1][4][4] == b"payload 5"


def test_the_lines_of_a_run_are_not_read_one_by_one():
    decoder = nats.decoder(LIMIT)
    stream = b"".join(ours(b"a.b", b"1", i, b"payload") for i in range(100))
    assert calls_while(lambda: decoder.feed(stream))["find"] < 10
    assert len(events(decoder)) == 100


@given(st.lists(st.integers(0, len(RUN)), max_size=12), st.integers(1, 20), st.integers(0, 9))
def test_any_cut_of_runs_and_any_limit_give_the_same(places, limit, pause):
    found = parse(*cut(RUN, *places), limit=limit, pause=pause)
    assert by_subscription(found) == by_subscription(parse(RUN))
    assert parse(*cut(RUN, *places), limit=limit, pause=pause, ordered=True) == parse(RUN, limit=1, ordered=True)


@given(st.lists(st.integers(0, 9), max_size=12), st.sampled_from([b"9\r\n\r\n", b"9\r\n;\n"]))
def test_chunks_of_one_message_give_the_same(sequences, end):
    chunks = [ours(b"a.b", b"1", i, b"payload %d" % i).replace(b"9\r\n\r\n", end) for i in sequences]
    whole = [ours(b"a.b", b"1", i, b"payload %d" % i) for i in range(3)]
    stream = [*whole, *chunks, *(part for chunk in chunks for part in (chunk[:80], chunk[80:])), *whole]
    assert by_subscription(parse(*stream)) == by_subscription(parse(b"".join(stream)))


@st.composite
def runs(draw) -> bytes:
    """Frames of few layouts, so that most are like the one before, but for one thing."""
    subject, sid = draw(st.sampled_from([b"a.b", b"c.d"])), draw(st.sampled_from([b"1", b"2"]))
    payload = draw(st.sampled_from([b"", b"payload 1", b"payload 2", b"\r\nPING\r\n1"]))
    frame = ours(subject, sid, draw(st.integers(0, 9)), payload)
    unlike = [
        (b"", b""),
        (b"", b""),
        (b"msight: ", b"Msight: "),
        (b"msight: ", b"msight:\t"),
        (b"9\r\n\r\n", b"9\r\n;\n"),
    ]
    frame = frame.replace(*draw(st.sampled_from(unlike)))
    return frame * draw(st.integers(1, 4))


@given(st.lists(runs() | frames(), max_size=12), st.lists(st.integers(0, 2000), max_size=6))
def test_any_runs_are_read_as_nats_py_reads_them(sent, places):
    stream = b"".join(sent)
    found = parse(*cut(stream, *[min(place, len(stream)) for place in places]))
    assert by_subscription(as_nats_py(found)) == by_subscription(parse_as_nats_py(stream))
    found = parse(*cut(stream, *[min(place, len(stream)) for place in places]), ordered=True)
    assert as_nats_py(found) == parse_as_nats_py(stream)


@pytest.mark.parametrize(
    ("frame", "arrival"),
    [
        (ours(b"a.b", b"2", 1, b"payload 1"), (b"a.b 2", b"%016x%016x%016x" % (7, 1, 9), b"payload 1")),
        (
            ours(b"a.b", b"1", 1, b"payload 1").replace(b"9\r\n\r\n", b"9\r\n;\n"),
            (b"a.b 1", b"NATS/1.0\r\nmsight: %016x%016x%016x\r\n;\n" % (7, 1, 9), b"payload 1"),
        ),
        (
            ours(b"a.b", b"1", 0, b"payload 1"),
            (b"a.b 1", b"NATS/1.0\r\nmsight: %016x%016x%016x\r\n\r\n" % (7, 0, 9), b"payload 1"),
        ),
    ],
    ids=["another subscription", "another block", "a sequence of 0"],
)
def test_a_frame_of_the_same_layout_that_is_not_the_same_ends_a_run(frame, arrival):
    assert parse(ours(b"a.b", b"1", 1, b"payload 1") * 3 + frame * 3)[3:] == [arrival] * 3


@pytest.mark.parametrize(
    "unit", [b"PING\r\n", b"+OK\r\n", b"-ERR 'no'\r\n", b"MSG a 1 0\r\n\r\n", ours(b"a", b"1", 1, b"")]
)
def test_one_call_takes_at_most_its_limit(unit):
    decoder = nats.decoder(LIMIT)
    more, counts = decoder.feed(unit * 10_000), []
    while True:
        counts.append(len(events(decoder)))
        if not more:
            break
        more = decoder.feed(b"")
    assert counts == [4096, 4096, 1808]


def test_an_error_is_printable_text_on_one_line():
    (error,) = parse(b"-ERR 'said \x1b[2J\xe2\x80\xae \xff no\n'\r\n")
    assert error.text == "said \\x1b[2J\\u202e \ufffd no\\n"
    assert len(Reply("error", b"x" * 100_000).text) <= 300


@pytest.mark.parametrize("info", [b"", b"x", b"[1]", b"[" * 100_000, b'{"max_payload":' + b"9" * 5000 + b"}"])
def test_an_info_that_cannot_be_read_is_empty(info):
    assert nats.parse_info(Reply("INFO", info)) == {}
