"""The decoder gives the same however the stream is cut, and the same as nats-py's own parser; commands are what NATS reads."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from msight_bus.errors import BusError
from msight_bus.protocol import nats
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.nats import MAX_CONTROL_LINE, parse_headers
from msight_bus.protocol.stream_decoder import FrameTooLargeError, ProtocolError, Reply

INFO = (
    b'INFO {"server_id":"NCVN3FIZYYXOC3CYBJUSFNBYS3KSDJ2XLAXVIAFJWLQ25IMEN3WVGZP3","server_name":"recorder",'
    b'"version":"2.15.1","proto":1,"host":"127.0.0.1","port":45222,"headers":true,"auth_required":true,'
    b'"max_payload":1048576,"client_id":5,"client_ip":"127.0.0.1"} \r\n'
)
BLOCK = b"NATS/1.0\r\nmsight: 0123456789abcdef0123456789abcdef0123456789abcdef\r\ntraceparent: 00-ab-cd-01\r\n\r\n"

# What nats-server 2.15.1 sent to a verbose client with one forbidden subscription and one forbidden publish.
RECORDED = (
    INFO + b"+OK\r\nPONG\r\n" + INFO + b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n"
    b"MSG intersection.cam_ne 1 5\r\nhello\r\n+OK\r\n"
    b"MSG a.b 27 inbox 0\r\n\r\n+OK\r\n"
    b"MSG a.b 27 22\r\n\r\nMSG a.b 27 3\r\nPING\r\n\r\n+OK\r\n"
    b"HMSG intersection.cam_ne 1 96 352\r\n" + BLOCK + bytes(range(256)) + b"\r\n+OK\r\n"
    b"HMSG a.b 27 inbox 12 12\r\nNATS/1.0\r\n\r\n\r\n+OK\r\n"
    b"HMSG a.b 27 96 96\r\n" + BLOCK + b"\r\n"
    b"-ERR 'Permissions Violation for Subscription to \"hidden\"'\r\n"
    b"-ERR 'Permissions Violation for Publish to \"denied.x\"'\r\n+OK\r\n"
    b"HMSG inbox 3 44 44\r\nNATS/1.0 503\r\nNats-Subject: nobody.there\r\n\r\n\r\n"
    b"PONG\r\nPING\r\nPING\r\n-ERR 'Stale Connection'\r\n"
)
ARRIVALS = [
    (b"intersection.cam_ne 1", b"", b"hello"),
    (b"a.b 27", b"", b""),
    (b"a.b 27", b"", b"\r\nMSG a.b 27 3\r\nPING\r\n"),
    (b"intersection.cam_ne 1", BLOCK, bytes(range(256))),
    (b"a.b 27", b"NATS/1.0\r\n\r\n", b""),
    (b"a.b 27", BLOCK, b""),
    (b"inbox 3", b"NATS/1.0 503\r\nNats-Subject: nobody.there\r\n\r\n", b""),
]
LIMIT = 64 << 20


def events(decoder, limit=None) -> list[object]:
    """What can be taken, in the order of the stream; of the bus's own header its digits."""
    found: list[object] = []
    for item in decoder.take():
        found += [item] if isinstance(item, Reply) else arrivals(item)
    assert limit is None or len(found) <= limit
    return found


def arrivals(segment) -> list[tuple[bytes, bytes, bytes]]:
    address, frames, foreign = segment
    if frames is not None:
        return [(address, b"%016x%016x%016x" % frame[1:4], frame[4]) for frame in frames]
    return [(address, block, payload) for block, payload in foreign]


def by_subscription(found: list[object]) -> list[object]:
    """Operations stay where they are; between them each subscription's messages, in their order."""
    groups: list[object] = []
    group: dict[object, list[object]] = {}
    for event in found:
        if isinstance(event, tuple):
            group.setdefault(event[0], []).append(event[1:])
        else:
            groups += [group, event]
            group = {}
    return [*groups, group]


def parse(*chunks: bytes, at_once: bool = False, limit: int = 4096, pause: int = 0) -> list[object]:
    """``at_once`` takes what came after the last chunk; so many frames are read without the cache first."""
    decoder = nats.decoder(LIMIT)
    decoder._heads.pause = pause
    found: list[object] = []
    for chunk in chunks:
        if not at_once and (single := decoder.single(chunk)) is not None:
            found += arrivals((single[0], [single[1]], []))
            continue
        more = decoder.feed(chunk, limit)
        while more:
            found += [] if at_once else events(decoder, limit)
            more = decoder.feed(b"", limit)
        found += [] if at_once else events(decoder, limit)
    return found + events(decoder)


def cut(stream: bytes, *places: int) -> list[bytes]:
    """The stream in chunks, empty ones included."""
    return [stream[start:end] for start, end in pairwise([0, *sorted(places), len(stream)])]


class Recorder:
    """Stands where nats-py's client does and writes down what its parser calls."""

    def __init__(self) -> None:
        self.events: list[object] = []

    async def _process_msg(self, sid, subject, reply, data, headers):
        self.events.append((b"%b %d" % (subject, sid), _digits_of_ours(headers or b""), data))

    async def _process_ping(self):
        self.events.append("PING")

    async def _process_pong(self):
        self.events.append("PONG")

    async def _process_info(self, info):
        self.events.append(info)

    async def _process_err(self, text):
        self.events.append(text)


def _digits_of_ours(block: bytes) -> bytes:
    """What our parser makes of the bus's own header where it is the only one."""
    found = re.fullmatch(rb"NATS/1\.0\r\nmsight: (.{48})\r\n\r\n", block, re.DOTALL)
    return found[1] if found and found[1][16:32] != b"0" * 16 else block


def parse_as_nats_py(stream: bytes) -> list[object]:
    recorder = Recorder()
    with pytest.raises(StopIteration):
        Parser(recorder).parse(stream).send(None)
    return recorder.events


def as_nats_py(found: list[object]) -> list[object]:
    """Our events in the recorder's terms, without +OK, which nats-py skips."""
    return [_as_nats_py(event) for event in found if not (isinstance(event, Reply) and event.kind == "OK")]


def _as_nats_py(event: object) -> object:
    if not isinstance(event, Reply):
        return event
    if event.kind == "INFO":
        return json.loads(event.data)
    return f"'{event.text.lower()}'" if event.kind == "error" else event.kind


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


@given(st.lists(frames(), max_size=8), st.lists(st.integers(0, 2000), max_size=10))
def test_any_stream_is_read_as_nats_py_reads_it(sent, places):
    stream = b"".join(sent)
    found = parse(*cut(stream, *[min(place, len(stream)) for place in places]))
    assert by_subscription(as_nats_py(found)) == by_subscription(parse_as_nats_py(stream))


# -- what is not NATS

MALFORMED = [
    b"MSG",
    b"MSG ",
    b"MSG a",
    b"MSG a 1",
    b"MSG a 1 b 2 3",
    b"MSG a 1 x",
    b"MSG a 1 -1",
    b"MSG a 1 +1",
    b"MSG a 1 1_0",
    b"MSG a 1 1.0",
    b"MSG a 1 0x1",
    b"MSG a 1 \xd9\xa3",
    b"MSGS a 1 1",
    b"MSH a 1 1",
    b"HMSG",
    b"HMSG a",
    b"HMSG a 1",
    b"HMSG a 1 12",
    b"HMSG a 1 b 12 12 12",
    b"HMSG a 1 x 12",
    b"HMSG a 1 12 x",
    b"HMSG a 1 13 12",
    b"HMSG a 1 -1 12",
    b"HTTP/1.1 400 Bad Request",
    b"HTTP/1.1 1 2 3 4",
]
TOO_LARGE = [LIMIT + nats.OVERHEAD + 1, 10**8, 10**9, 10**18]


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_refused_at_once_however_it_is_cut(line):
    stream = b"PING\r\n" + line + b"\r\n"
    for place in range(len(stream)):
        with pytest.raises(ProtocolError):
            parse(*cut(stream, place))


KNOWN = b"MSG a 1 1\r\nx\r\nHMSG a 1 12 12\r\nNATS/1.0\r\n\r\n\r\n"
"""Messages whose heads the lines of the tests repeat."""


@pytest.mark.parametrize("line", [*MALFORMED, b"MSG a 1 " + b"9" * 20, b"HMSG a 1 12 " + b"9" * 5000, b"MSG a 1 -5"])
def test_a_malformed_line_is_refused_also_behind_messages_of_the_same_subscription(line):
    with pytest.raises(ProtocolError):
        parse(KNOWN + line + b"\r\n", pause=100)


@pytest.mark.parametrize(
    "line", [b"MSG a 1\t1", b"MSG a 1 1 ", b"MSG\ta 1 1", b"MSG a  1 1", b"HMSG a 1 0\t1", b"HMSG a 1 0 1\t"]
)
def test_a_line_with_other_white_space_is_read_the_same_when_it_repeats(line):
    assert parse(*[line + b"\r\nx\r\n"] * 3) == [(b"a 1", b"", b"x")] * 3


def test_the_memory_for_lines_of_many_subjects_is_bounded():
    decoder = nats.decoder(LIMIT)

    def read(subjects: range) -> None:
        for number in subjects:
            decoder.feed(b"MSG a.%d%b 1 1\r\nx\r\n" % (number, b"b" * 400))
            decoder.take()

    read(range(5_000))
    tracemalloc.start()
    try:
        read(range(5_000, 25_000))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5_000_000


@pytest.mark.parametrize("known", [b"", KNOWN])
@pytest.mark.parametrize("line", [b"MSG a 1 SIZE", b"HMSG a 1 SIZE SIZE", b"HMSG a 1 12 SIZE"])
@pytest.mark.parametrize("size", TOO_LARGE)
def test_a_huge_message_is_refused_before_it_takes_memory(line, size, known):
    with pytest.raises(FrameTooLargeError) as caught:
        parse(known + line.replace(b"SIZE", b"%d" % size) + b"\r\n")
    assert (caught.value.size, caught.value.limit) == (size, LIMIT + nats.OVERHEAD)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_size_of_many_digits_is_refused(digits):
    with pytest.raises(ProtocolError):
        parse(b"MSG a 1 %b\r\n" % (b"9" * digits))


def test_a_declared_size_takes_no_memory_until_the_bytes_come():
    decoder = nats.decoder(LIMIT)
    tracemalloc.start()
    try:
        decoder.feed(b"MSG a 1 %d\r\nx" % LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000
    assert events(decoder) == []


@pytest.mark.parametrize("tail", [b"", b"\r"])
def test_a_line_without_end_is_refused(tail):
    decoder = nats.decoder(LIMIT)
    decoder.feed(b"+" * MAX_CONTROL_LINE + tail)
    with pytest.raises(ProtocolError, match="exceeds 1048576 bytes"):
        decoder.feed(b"+" * 2)


@pytest.mark.parametrize("places", [[], [MAX_CONTROL_LINE], [MAX_CONTROL_LINE + 1], [9, MAX_CONTROL_LINE + 2]])
def test_the_longest_line_is_the_same_however_it_is_cut(places):
    line = b"INFO " + b"x" * (MAX_CONTROL_LINE - 5)
    assert parse(*cut(line + b"\r\nPING\r\n", *places)) == [Reply("INFO", line[5:]), Reply("PING")]
    with pytest.raises(ProtocolError, match="exceeds 1048576 bytes"):
        parse(*cut(line + b"x\r\nPING\r\n", *places))


def test_a_large_chunk_may_end_within_a_line():
    large = b"MSG a 1 %d\r\n%b\r\n" % (MAX_CONTROL_LINE, bytes(MAX_CONTROL_LINE))
    assert parse(large + b"PI", b"NG\r\n") == [(b"a 1", b"", bytes(MAX_CONTROL_LINE)), Reply("PING")]


@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([b"MSG ", b"HMSG ", b"a 1 ", b"5 ", b"\r\n", b"PING"]), max_size=20
    )
)
def test_garbage_raises_nothing_but_a_protocol_error(chunks):
    outcomes = []
    for how in (chunks, [b"".join(chunks)]):
        try:
            outcomes.append(parse(*how))
        except ProtocolError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def test_a_protocol_error_is_a_bus_error():
    assert issubclass(ProtocolError, BusError)


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


# -- header blocks


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


# -- runs of equal frames


def ours(subject: bytes, sid: bytes, sequence: int, payload: bytes) -> bytes:
    block = b"NATS/1.0\r\nmsight: %016x%016x%016x\r\n\r\n" % (7, sequence, 9)
    return b"HMSG %b %b %d %d\r\n%b%b\r\n" % (subject, sid, len(block), len(block) + len(payload), block, payload)


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
    assert nats.subscribe(b"a.*", b"5") + nats.subscribe(b"a", b"6", b"group") + nats.unsubscribe(
        b"5"
    ) + nats.ping() == (b"SUB a.* 5\r\nSUB a group 6\r\nUNSUB 5\r\nPING\r\n")
    assert nats.connect({"verbose": False}) == b'CONNECT {"verbose": false}\r\n'
