"""The decoder of RESP2 gives the same however the stream is cut, and the same as hiredis; commands are what Redis reads."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.protocol import envelope, redis
from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.stream_decoder import FrameTooLargeError, ProtocolError, Reply


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
        b":1\r\n:20\r\n:-3\r\n",
        b"*4\r\n" + bulk(b"pmessage") + bulk(b"a.*") + bulk(b"a.b") + bulk(b"raw"),
        b"*4\r\n" + bulk(b"pmessage") + bulk(b"a.*") + bulk(b"a.b") + bulk(framed(1, b"by pattern")),
        message(b"a.b", framed(12, b"with a key", key="lane 3")),
        message(b"a.b", framed(13, b"with a key", key="lane 3")),
        b"+PONG\r\n",
        b"*3\r\n" + bulk(b"unsubscribe") + b"$-1\r\n" + b":0\r\n",
    ]
)


LIMIT = 10_000_000


def parse(*chunks, at_once=False, limit=4096, pause=0, ordered=False):
    """Addresses with their whole data, and replies, in the order of the stream.

    ``at_once`` takes them after the last chunk; ``limit`` is of each call; so many frames are read without the cache first.
    """
    decoder = redis.decoder(LIMIT)
    decoder.keep_order(ordered)
    decoder._heads.pause = pause
    found = []
    for chunk in chunks:
        if not at_once and (single := decoder.single(chunk)) is not None:
            found += whole((single[0], [single[1]], []))
            continue
        more = decoder.feed(chunk, limit)
        while more:
            found += [] if at_once else taken(decoder, limit)
            more = decoder.feed(b"", limit)
        found += [] if at_once else taken(decoder, limit)
    return found + taken(decoder)


def taken(decoder, limit=None):
    found = []
    for item in decoder.take():
        if not isinstance(item, Reply):
            found += whole(item)
        else:
            found += [item.text if item.kind == "error" else None] * item.count
    assert limit is None or len(found) <= limit
    return found


def whole(item):
    if len(item) == 2:
        return [each for channel, frame in zip(*item, strict=True) for each in whole((channel, [frame], []))]
    channel, frames, others = item
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
        elif isinstance(reply, list) and reply[0] == b"pmessage":
            found.append(((reply[1], reply[2]), reply[3]))
        else:
            found.append(str(reply) if isinstance(reply, hiredis.ReplyError) else None)
    return found


def test_it_reads_what_hiredis_reads():
    assert by_channel(parse(STREAM)) == by_channel(parse_with_hiredis(STREAM))
    assert sum(isinstance(event, tuple) for event in parse(STREAM)) == 19


def test_the_metadata_is_told_from_the_payload():
    decoder = redis.decoder(LIMIT)
    assert not decoder.feed(STREAM)
    segments = [item for item in decoder.take() if not isinstance(item, Reply)]
    assert [payload for _, _, foreign in segments for meta, payload in foreign if not meta] == [
        b"raw", b"", b"\xc1MB\x01 looks like ours and is too short", b"raw",
    ]  # fmt: skip
    frames = [(address, *frame[1:]) for address, frames, _ in segments for frame in frames or ()]
    assert len(frames) == 13
    assert frames[3] == (b"a.b", 7, 4, 1_700_000_000_000_000_000, b"payload 4")
    assert frames[-1] == ((b"a.*", b"a.b"), 7, 1, 1_700_000_000_000_000_000, b"by pattern")


def test_replies_say_what_they_answer():
    decoder = redis.decoder(LIMIT)
    decoder.feed(STREAM)
    assert [item for item in decoder.take() if isinstance(item, Reply)] == [
        Reply("subscribe", b"a.b"),
        Reply("PONG"),
        Reply("error", b"NOPERM no such right"),
        Reply("integer", count=3),
        Reply("PONG"),
        Reply("unsubscribe"),
    ]


def test_replies_of_role_and_info_are_read():
    role = b"*3\r\n$6\r\nmaster\r\n:14\r\n*1\r\n*3\r\n$1\r\nh\r\n$4\r\n6380\r\n$1\r\n1\r\n"
    decoder = redis.decoder(LIMIT)
    for byte in role + b"$12\r\nrole:master\n\r\n*-1\r\n$-1\r\n*0\r\n":
        decoder.feed(bytes([byte]))
    assert [reply.value for reply in decoder.take()] == [
        [b"master", 14, [[b"h", b"6380", b"1"]]],
        b"role:master\n",
        b"",
        b"",
        [],
    ]


def test_every_cut_in_two_gives_the_same():
    expected = by_channel(parse(STREAM))
    in_order = parse_with_hiredis(STREAM)
    for place in range(len(STREAM) + 1):
        chunks = STREAM[:place], STREAM[place:]
        assert by_channel(parse(*chunks)) == expected
        assert by_channel(parse(*chunks, at_once=True)) == expected
        assert parse(*chunks, ordered=True) == parse(*chunks, ordered=True, at_once=True) == in_order


def test_byte_by_byte_gives_the_same():
    assert by_channel(parse(*[STREAM[i : i + 1] for i in range(len(STREAM))])) == by_channel(parse(STREAM))


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.integers(1, 40), st.integers(0, 20))
def test_any_cut_and_any_limit_give_the_same(places, limit, pause):
    chunks = [STREAM[start:end] for start, end in pairwise([0, *sorted(places), len(STREAM)])]
    assert by_channel(parse(*chunks, limit=limit, pause=pause)) == by_channel(parse(STREAM))
    assert parse(*chunks, limit=limit, pause=pause, ordered=True) == parse_with_hiredis(STREAM)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b.c"]), st.binary(max_size=80), st.booleans()), max_size=40))
def test_any_messages_are_read_as_hiredis_reads_them(messages):
    stream = b"".join(
        message(channel, framed(i, data) if ours else data) for i, (channel, data, ours) in enumerate(messages)
    )
    assert by_channel(parse(stream)) == by_channel(parse_with_hiredis(stream))
    assert parse(stream, ordered=True) == parse_with_hiredis(stream)


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c.d"]), st.integers(0, 30), st.booleans()), max_size=30),
    st.lists(st.integers(0, 20_000), max_size=6),
    st.integers(1, 300),
)
def test_messages_of_several_channels_of_equal_length_keep_the_order_of_the_stream(runs, places, limit):
    """Runs of a channel, in turn and with others in between, of one size and of several."""
    sent = [(channel, ours) for channel, count, ours in runs for _ in range(count)]
    stream = b"".join(
        message(channel, framed(1 + i, b"%04d" % i) if ours else b"%04d" % i) for i, (channel, ours) in enumerate(sent)
    )
    stream = b"".join(message(channel, framed(7, b"0000")) for channel in (b"a", b"b") * 3) + stream
    chunks = [stream[start:end] for start, end in pairwise([0, *sorted(places), len(stream)])]
    assert parse(*chunks, limit=limit, ordered=True) == parse_with_hiredis(stream)


@given(st.lists(st.integers(0, 9), max_size=12))
def test_chunks_of_one_message_give_the_same(sequences):
    chunks = [message(b"a.b", framed(i, b"payload %d" % i)) for i in sequences]
    cut = [part for chunk in chunks[:3] for part in (chunk[:70], chunk[70:])]
    assert by_channel(parse(*chunks, *cut, *chunks)) == by_channel(
        parse_with_hiredis(b"".join([*chunks, *cut, *chunks]))
    )


# -- what no bus sends


@pytest.mark.parametrize("payload", [b"", b"payload"])
@pytest.mark.parametrize("extension", [b"", envelope.pack_extension("k", None)])
def test_a_sequence_of_0_makes_a_raw_payload_alone_and_in_a_run(extension, payload):
    zeros = envelope.prefix(7, 0, 9, extension) + payload
    ours = [framed(i, payload) for i in range(1, 300)]
    for sent in ([zeros], [*ours[:5], zeros, *ours[5:10]], [*ours[:280], *[zeros] * 3, *ours[280:]], [zeros] * 9):
        stream = b"".join(message(b"a", data) for data in sent)
        decoder = redis.decoder(LIMIT)
        decoder.feed(b"".join(message(b"a", data) for data in ours[:3]))
        decoder.take()
        decoder.feed(stream)
        foreign = [foreign for _, _, found in decoder.take() for foreign in found]
        assert foreign == [(b"", zeros)] * sent.count(zeros)


def test_the_third_chunk_of_one_message_is_taken_as_one():
    decoder = redis.decoder(LIMIT)
    chunk = message(b"a.b", framed(1, b"payload"))
    for _ in range(2):
        assert decoder.single(chunk) is None
        decoder.feed(chunk)
        decoder.take()
    assert decoder.single(chunk) == (b"a.b", (chunk[: -24 - 9], 7, 1, 1_700_000_000_000_000_000, b"payload"))
    assert decoder.single(message(b"a.b", framed(0, b"payload"))) is None
    decoder.feed(chunk[:-1])
    assert decoder.single(chunk) is None  # it is not where a frame begins


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"*3\r\n$7\r\nmessage\r\n", b"$1\r\n", b"a\r\n", b"\r", b":1\r\n"])).map(b"".join)
)
def test_garbage_is_an_error_or_incomplete_however_it_is_cut(garbage):
    outcomes = []
    for chunks in ([garbage], [garbage[i : i + 1] for i in range(len(garbage))]):
        try:
            outcomes.append(by_channel(parse(*chunks)))
        except ProtocolError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"*3\r\n$7\r\nmessage\r\n$x\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:5\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$99999999999\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$-1\r\n",
        b"*3\r\n$7\r\nmessage\r\n$70000\r\n",
        b"*1000000\r\n",
        b"*2000000000\r\n",
        b"*1\r\n" * 6,
        b"*1025\r\n",
        b"*1\r\n$1000000\r\n",
        b"$1000000\r\n",
        b"+" + b"x" * 70_000,
        b":" + b"1" * 70_000,
        b":1\r\n:x\r\n",
        b":" + b"1" * 20 + b"\r\n",
    ],
)
def test_what_is_no_resp_is_refused_before_memory_is_taken(wrong):
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        parse(wrong)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("size", [1, LIMIT, 4_000_000_000])
def test_a_message_over_the_limit_is_refused_when_it_is_announced(size):
    size += LIMIT + redis.OVERHEAD - 1
    decoder = redis.decoder(LIMIT)
    start = message(b"a", framed(1, b"before")) + b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n"
    with pytest.raises(FrameTooLargeError) as caught:
        decoder.feed(start + b"$%d\r\n" % (size + 1))
    assert (caught.value.size, caught.value.limit) == (size + 1, LIMIT + redis.OVERHEAD)
    assert [item[0] for item in decoder.take()] == [b"a"]


@pytest.mark.parametrize("channel_bytes", [1, 9, 10, 99, 100])
def test_a_length_ends_with_a_whole_line_end(channel_bytes):
    """Of a short channel's lengths too, which are looked up and not read."""
    right = message(b"a" * channel_bytes, b"payload")
    for end, wrong in ((b"%d\r\na" % channel_bytes, b"%d\rxa" % channel_bytes), (b"$7\r\np", b"$7\rxp")):
        assert right.count(end) == 1
        with pytest.raises(ProtocolError):
            parse(right.replace(end, wrong))


def test_a_message_of_the_limit_is_taken():
    payload = bytes(LIMIT + redis.OVERHEAD)
    assert parse(message(b"a", payload)) == [(b"a", payload)]


def test_a_long_channel_of_a_pattern_is_joined_once(monkeypatch):
    heads = []
    read = redis._Grammar._read_head
    monkeypatch.setattr(redis._Grammar, "_read_head", lambda *given: heads.append(given) or read(*given))
    channel = b"a." + b"x" * 1_000_000
    frame = b"*4\r\n" + bulk(b"pmessage") + bulk(b"a.*") + bulk(channel) + bulk(framed(1, b"data"))
    for _ in range(3):
        assert parse(*[frame[i : i + 1000] for i in range(0, len(frame), 1000)]) == [
            ((b"a.*", channel), framed(1, b"data"))
        ]
    assert len(heads) < 12
    with pytest.raises(redis.ProtocolError, match="at most 65536"):
        parse(message(channel, b"data"))


def test_a_large_payload_is_joined_once():
    payload = bytes(4_000_000)
    stream = message(b"a", framed(1, payload))
    decoder = redis.decoder(LIMIT)
    tracemalloc.start()
    for start in range(0, len(stream), 65536):
        decoder.feed(stream[start : start + 65536])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoder.take()[0][1][0][4] == payload
    assert peak < 2.2 * len(payload)  # the chunks and the payload


# -- cost


@pytest.mark.parametrize(
    "unit", [b":1\r\n", b"-ERR no\r\n", b"+OK\r\n", message(b"a", b""), message(b"a", framed(1, b""))]
)
def test_one_call_takes_at_most_its_limit(unit):
    decoder = redis.decoder(LIMIT)
    more, counts = decoder.feed(unit * 10_000), []
    while True:
        counts.append(len(taken(decoder)))
        if not more:
            break
        more = decoder.feed(b"")
    assert counts == [4096, 4096, 1808]


def test_a_limit_that_is_used_up_by_the_end_of_a_payload_leaves_the_rest_for_the_next_call():
    """Else the next message would wait for bytes behind it."""
    first, second = (b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$40\r\n%b\r\n" % (b"%d" % n * 40) for n in (1, 2))
    decoder = redis.decoder(LIMIT)
    assert not decoder.feed(first[:-10], 1)
    assert decoder.feed(first[-10:] + second, 0)
    decoder.take()
    assert not decoder.feed(b"", 1)
    assert decoder.take() == [(b"a", None, [(b"", b"2" * 40)])]


def test_bytes_that_come_while_others_are_left_over_follow_them():
    decoder = redis.decoder(LIMIT)
    assert decoder.feed(b"".join(message(b"a", b"%d" % i) for i in range(9)), 4)
    assert decoder.feed(message(b"a", b"9")[:20], 4)
    assert not decoder.feed(message(b"a", b"9")[20:], 4)
    assert [data for _, data in taken(decoder)] == [b"%d" % i for i in range(10)]


def test_heads_that_do_not_repeat_are_not_looked_up_for_a_while():
    decoder = redis.decoder(LIMIT)
    for number in range(4200):
        decoder.feed(message(b"a%d" % number, framed(1, b"x")))
    assert decoder._heads.pause > 0
    assert len(taken(decoder)) == 4200
    for _ in range(33_000):
        decoder.feed(message(b"a", framed(1, b"equal")))
    assert len(taken(decoder)) == 33_000
    assert decoder._heads.pause == 0
    assert decoder._heads.hits > 0


def test_a_thousand_heads_are_learned_at_their_second_sight():
    decoder = redis.decoder(LIMIT)
    for _ in range(3):
        for size in range(1, 1001):
            decoder.feed(message(b"a", framed(1, bytes(size))))
    assert len(taken(decoder)) == 3000
    assert decoder._heads.pause == 0
    assert decoder._heads.hits >= 700  # those whose number of digits is the one before


# -- sending


def commands(sent):
    reader = hiredis.Reader()
    reader.feed(sent)
    return list(iter(reader.gets, False))


@given(st.lists(st.tuples(st.binary(max_size=60), st.none() | st.text("ab", max_size=3)), max_size=20))
def test_what_is_published_is_what_is_received(messages):
    counter = TopicCounter("a.b", 7, 41)
    received = []
    for sequence, (payload, key) in enumerate(messages, 42):
        parts, size = redis.publish(counter, payload, key, None, 9, LIMIT)
        (command,) = commands(b"".join(parts))
        assert command[:2] == [b"PUBLISH", b"a.b"]
        assert len(command[2]) == size
        received.append(command[2])
        assert counter.sequence == sequence
    decoder = redis.decoder(LIMIT)
    decoder.feed(b"".join(message(b"a.b", data) for data in received))
    found = []
    for _, frames, foreign in decoder.take():
        found += [(frame[1:4], None, frame[4]) for frame in frames or ()]
        found += [(meta, key, payload) for meta, key, _, payload in (redis.decode_metadata(*one) for one in foreign)]
    assert sorted(found) == [((7, i, 9), key, payload) for i, (payload, key) in enumerate(messages, 42)]


def test_a_raw_payload_travels_alone():
    counter = TopicCounter("a", 7)
    (first, one), (second, two) = (redis.publish_raw(counter, data, None, None, 9, LIMIT) for data in (b"x", b"yy"))
    assert (one, two) == (1, 2)
    assert commands(b"".join(first + second)) == [
        [b"PUBLISH", b"a", b"x"],
        [b"PUBLISH", b"a", b"yy"],
    ]
    assert counter.sequence == 0


def test_the_other_commands():
    sent = (
        redis.subscribe(b"a", by_pattern=False)
        + redis.unsubscribe(b"bc", by_pattern=False)
        + redis.subscribe(b"a.*", by_pattern=True)
        + redis.unsubscribe(b"*", by_pattern=True)
        + redis.PING
    )
    assert commands(sent) == [
        [b"SUBSCRIBE", b"a"], [b"UNSUBSCRIBE", b"bc"], [b"PSUBSCRIBE", b"a.*"], [b"PUNSUBSCRIBE", b"*"], [b"PING"],
    ]  # fmt: skip
