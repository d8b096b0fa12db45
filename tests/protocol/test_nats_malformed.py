"""What is not NATS is a protocol error, before it takes memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.errors import BusError
from msight_bus.protocol import nats
from msight_bus.protocol.nats import MAX_CONTROL_LINE
from msight_bus.protocol.stream_decoder import FrameTooLargeError, ProtocolError, Reply
from tests.protocol.nats_streams import LIMIT, cut, events, parse

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
