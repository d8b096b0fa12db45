"""Batches that a producer can write and that aiokafka's parser does not read, or reads wrongly."""

from __future__ import annotations

from itertools import count

import google_crc32c
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.fetch import FetchRequest as AiokafkaFetchRequest
from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v8
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.backends.kafka import partition_reader
from msight_bus.backends.kafka.aiokafka_compat import READ_COMMITTED, has_valid_checksum, produce_request
from msight_bus.backends.kafka.aiokafka_compat.requests import FETCH_VERSIONS, FetchRequest, read_fetch
from msight_bus.backends.kafka.batch_parsing import read_records, split
from msight_bus.backends.kafka.partition_reader import PartitionReader
from msight_bus.backends.kafka.records import offset_of, to_messages
from tests.support.kafka_records import NOW_MS, Rec, batch_of, varint


class Maker:
    """Keeps what a reader hands out and says."""

    def __init__(self, limit=100, fetches=1):
        self.limit = limit
        self.read = []
        self.gaps = []
        self.passed_to = []
        self._fetches = count(1)
        self._enough = fetches

    def make(self, records, first):
        return to_messages("t", records, 1_800_000_000.0, None, first)

    def passed(self, offset):
        self.passed_to.append(offset)

    def unreadable(self, count, reason, *, at_most):
        self.gaps.append((len(self.read), count, at_most))

    def fetch_again(self, offset):
        return next(self._fetches) < self._enough


def read(data, position=0, maker=None, aborted=()):
    """All of a fetch: the values with their offsets, and the maker."""
    maker = maker or Maker()
    reader = PartitionReader(data, position, aborted, maker)
    for messages in reader:
        assert 0 < len(messages) <= maker.limit
        assert reader.next_fetch_offset > offset_of(messages[-1])
        maker.read += [(offset_of(message), message.payload) for message in messages]
    assert not maker.passed_to or reader.next_fetch_offset == maker.passed_to[-1]
    return maker


A, B, C = Rec(b"a"), Rec(b"b"), Rec(b"c")
NULL_NAME = Rec(b"bad", headers=[(None, b"x")])
ODD = {
    "header name": Rec(b"odd", headers=[(b"\xff", b"x")]),
    "null header name": NULL_NAME,
    "attributes": Rec(b"odd", attributes=0x80),
    "offset 0": Rec(b"odd", offset_delta=0),
    "offset far ahead": Rec(b"odd", offset_delta=2**31 - 1),
    "offset behind": Rec(b"odd", offset_delta=-5),
    "timestamp": Rec(b"odd", timestamp_delta=2**62),
    "bytes at its end": Rec(raw=bytes([0]) + varint(0) + varint(1) + varint(-1) + varint(3) + b"odd" + varint(0) + b"more"),
}  # fmt: skip
BAD = {
    "empty": Rec(raw=b""),
    "key too long": Rec(raw=bytes([0, 0, 0]) + varint(1000)),
    "headers without number": Rec(raw=bytes([0, 0, 0]) + varint(-1) + varint(-1) + varint(10**9)),
    "negative headers": Rec(raw=bytes([0, 0, 0]) + varint(-1) + varint(-1) + varint(-3)),
    "endless number": Rec(raw=b"\xff" * 30),
}


@pytest.mark.parametrize("codec", [0, 1])
@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("odd", ODD)
def test_what_kafkas_own_clients_read_is_read(odd, limit, codec):
    maker = read(batch_of(A, ODD[odd], C, codec=codec), maker=Maker(limit))
    assert [offset for offset, _ in maker.read] == [0, 1, 2]
    assert [value for _, value in maker.read if value not in (b"odd", b"bad")] == [b"a", b"c"]
    assert maker.gaps == []


@pytest.mark.parametrize("codec", [0, 1])
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_an_ordinary_batch_is_left_to_the_fast_parser(limit, codec, monkeypatch):
    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(partition_reader, "read_records", never)
    with_holes = batch_of(Rec(b"d", offset_delta=0), Rec(b"e", offset_delta=3), base=5, last=4, codec=codec)
    maker = read(batch_of(A, B, C, A, B, codec=codec) + with_holes, maker=Maker(limit))
    assert [offset for offset, _ in maker.read] == [0, 1, 2, 3, 4, 5, 8]


@pytest.mark.parametrize("codec", [0, 1])
@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("bad", BAD)
def test_an_unreadable_record_is_passed_over_by_itself(bad, limit, codec):
    maker = read(batch_of(A, BAD[bad], C, codec=codec) + batch_of(B, base=3), maker=Maker(limit))
    assert maker.read == [(0, b"a"), (2, b"c"), (3, b"b")]
    assert maker.gaps == [(1, 1, False)]


@pytest.mark.parametrize("length", [10_000, -1, 2**80])
def test_behind_a_wrong_length_the_rest_of_the_batch_is_passed_over(length):
    maker = read(batch_of(A, Rec(b"b", length=length), C) + batch_of(B, base=3))
    assert maker.read == [(0, b"a"), (3, b"b")]
    assert maker.gaps == [(1, 2, False)]


def test_an_unreadable_record_before_the_position_is_not_announced_again():
    maker = read(batch_of(BAD["empty"], A, NULL_NAME), position=1)
    assert maker.read == [(1, b"a"), (2, b"bad")]
    assert maker.gaps == []


def test_offsets_with_holes_are_those_of_the_records():
    holes = [Rec(b"a", offset_delta=1), Rec(b"b", offset_delta=4)]
    assert read(batch_of(*holes, base=10, last=9)).read == [(11, b"a"), (14, b"b")]


@pytest.mark.parametrize("wrong", [0, 1, -3, 10, 2**31 - 1])
def test_among_holes_an_offset_that_is_none_of_its_batch_is_passed_over(wrong):
    records = [Rec(b"a", offset_delta=1), Rec(b"x", offset_delta=wrong), Rec(b"b", offset_delta=4)]
    maker = read(batch_of(*records, base=10, last=9) + batch_of(C, base=20))
    assert maker.read == [(11, b"a"), (14, b"b"), (20, b"c")]
    assert maker.gaps == [(1, 1, True)]
    assert maker.passed_to == [20, 21]


@pytest.mark.parametrize("data", [batch_of(B, crc=1, base=1), batch_of(B, base=1)[:-1] + b"\xee"])
def test_a_damaged_batch_is_fetched_again_and_then_passed_over(data):
    maker = Maker(fetches=3)
    for _ in range(2):
        with pytest.raises(Exception, match="checksum"):
            read(data, 1, maker)
    assert read(data + batch_of(C, base=2), 1, maker).read == [(2, b"c")]
    assert maker.gaps == [(0, 1, True)]


def test_a_batch_of_an_unknown_compression_is_passed_over():
    maker = read(batch_of(A, B, attributes=7) + batch_of(C, base=2))
    assert (maker.read, maker.gaps) == ([(2, b"c")], [(0, 2, False)])


def test_a_length_that_cannot_be_true_is_passed_over():
    data = bytearray(batch_of(A))
    data[8:12] = (5).to_bytes(4, "big")
    maker = read(bytes(data))
    assert (maker.read, maker.gaps, maker.passed_to) == ([], [(0, 1, True)], [1])


def test_a_batch_that_was_cut_short_comes_whole_the_next_time():
    data = batch_of(A) + batch_of(B, base=1)
    for end in range(len(batch_of(A)), len(data)):
        assert [bytes(batch) for batch in split(data[:end])] == [batch_of(A)]


def test_markers_and_aborted_transactions_are_passed_over():
    """A producer's second transaction is aborted, another one's is not."""

    def transaction(base, *records, producer, control=False):
        data = bytearray(batch_of(*records, base=base, attributes=0x10 | (0x20 if control else 0)))
        data[43:51] = producer.to_bytes(8, "big")
        return sealed(data)

    def marker(base, kind, producer):
        return transaction(base, Rec(b"", key=b"\0\0\0" + bytes([kind])), producer=producer, control=True)

    data = transaction(0, A, producer=7) + marker(1, 1, 7)
    data += transaction(2, B, producer=7) + transaction(3, C, producer=8) + marker(4, 0, 7) + marker(5, 1, 8)
    data += transaction(6, A, producer=7) + marker(7, 1, 7)
    maker = read(data, aborted=[(7, 2)])
    assert maker.read == [(0, b"a"), (3, b"c"), (6, b"a")]
    assert maker.passed_to[-1] == 8
    assert read(data).read == [(0, b"a"), (2, b"b"), (3, b"c"), (6, b"a")]


@pytest.mark.parametrize("codec", [0, 1])
@pytest.mark.parametrize("magic", [0, 1])
def test_batches_of_the_formats_before_kafka_0_11_are_read(magic, codec):
    """A compressed one has the offset of its last record."""
    builder = LegacyRecordBatchBuilder(magic, codec, 10_000)
    for number in range(3):
        builder.append(number, NOW_MS, None, b"%d" % number)
    data = bytearray(builder.build())
    if codec:
        data[:8] = (2).to_bytes(8, "big")
    maker = read(bytes(data) + batch_of(A, base=3))
    assert maker.read == [(0, b"0"), (1, b"1"), (2, b"2"), (3, b"a")]
    assert maker.gaps == []
    assert maker.passed_to[-2:] == [3, 4]
    data[-1] ^= 0xFF
    damaged = read(bytes(data) + batch_of(A, base=3))
    assert damaged.read[-1] == (3, b"a")
    assert damaged.gaps == [(0, 3, True) if codec else (2, 1, True)]


STRUCTS = [struct for struct in AiokafkaFetchRequest._CLASSES if struct.API_VERSION in FETCH_VERSIONS]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: f"version {struct.API_VERSION}")
def test_a_request_of_any_version_is_encoded_as_by_aiokafka(struct):
    versions = {1: (0, struct.API_VERSION)}
    """Of two topics, in an order in which their partitions alternate."""
    positions = {("a.tópic", 0): 12, ("b", 7): 1, ("a.tópic", 3): 2**40}
    request = FetchRequest({TopicPartition(*where): at for where, at in positions.items()}, READ_COMMITTED, 2_000_000)
    topics = [("a.tópic", [(0, 12, 2_000_000), (3, 2**40, 2_000_000)]), ("b", [(7, 1, 2_000_000)])]
    theirs = AiokafkaFetchRequest(500, 1, 50 * 1024 * 1024, READ_COMMITTED, topics).prepare(versions)
    header = theirs.build_request_header(7, "cliënt")
    assert request.encode(versions, 7, "cliënt".encode()) == header.encode() + theirs.encode()
    assert request.version == struct.API_VERSION


@pytest.mark.parametrize("version", range(9))
def test_a_produce_request_of_any_version_is_encoded_as_by_aiokafka(version):
    batches = {
        TopicPartition("a.tópic", 0): b"one",
        TopicPartition("b", 7): b"",
        TopicPartition("a.tópic", 3): bytes(2000),
    }
    ours = produce_request(batches, 1.5).prepare({0: (0, version)})
    topics = [("a.tópic", [(0, b"one"), (3, bytes(2000))]), ("b", [(7, b"")])]
    (struct,) = [each for each in (*ProduceRequest._CLASSES, ProduceRequest_v8) if version == each.API_VERSION]
    theirs = struct(*(() if version < 3 else (None,)), -1, 1500, topics)
    assert ours.encode() == theirs.encode()


@pytest.mark.parametrize("versions", [{}, {1: (0, 3)}, {1: (12, 17)}])
def test_a_broker_without_a_known_version_of_fetch_is_refused(versions):
    request = FetchRequest({TopicPartition("t", 0): 0}, READ_COMMITTED, 1)
    with pytest.raises(IncompatibleBrokerVersion):
        request.encode(versions, 1, b"")


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: f"version {struct.API_VERSION}")
def test_an_answer_of_any_version_is_read(struct):
    """Of two topics, with an error, with aborted transactions and without a list of them."""
    version, schema = struct.API_VERSION, struct.RESPONSE_TYPE.SCHEMA
    parts = [
        ("one", 0, 0, 12, 9, [(7, 2), (8, 3)], b"abc"),
        ("one", 1, 6, -1, -1, None, b""),
        ("two", 2, 0, 5, 5, [], b"de"),
    ]
    topics = [
        (
            topic,
            [
                (number, code, end, stable, *([0] * (version >= 5)), aborted, *([-1] * (version >= 11)), data)
                for name, number, code, end, stable, aborted, data in parts
                if name == topic
            ],
        )
        for topic in ("one", "two")
    ]
    answer = read_fetch(memoryview(schema.encode((100, *((70, 12) if version >= 7 else ()), topics))), version)
    assert (answer.code, answer.session) == ((70, 12) if version >= 7 else (0, 0))
    found = [(*each[0], *each[1:5], bytes(each.data)) for each in answer]
    assert found == [(*part[:5], part[5] or [], part[6]) for part in parts]


@pytest.mark.parametrize("implementation", ["c", "python"])
@pytest.mark.parametrize("size", [0, 200, 200_000])
def test_a_changed_byte_is_found_with_and_without_a_wheel_of_the_checksum(implementation, size, monkeypatch):
    monkeypatch.setattr(google_crc32c, "implementation", implementation)
    batch = bytearray(batch_of(Rec(value=bytes(size))))
    assert has_valid_checksum(memoryview(batch))
    for place in (17, 20, 21, len(batch) - 1):
        batch[place] ^= 1
        assert not has_valid_checksum(memoryview(batch))
        batch[place] ^= 1


def sealed(data):
    """A batch with its checksum made right."""
    from aiokafka.record.util import calc_crc32c

    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


@given(st.binary(max_size=80), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 4]))
def test_whatever_a_batch_holds_what_comes_after_it_is_read(body, records, codec):
    data = bytearray(batch_of(*[A] * records, count=records, last=max(0, records - 1), attributes=codec) + body)
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    end = max(1, records)
    maker = read(sealed(data) + batch_of(C, base=end))
    assert maker.read[-1] == (end, b"c")
    assert len(maker.read) - 1 + sum(gap[1] for gap in maker.gaps) in (records, end)


@given(st.data())
def test_whatever_byte_is_changed_what_comes_after_is_read(data):
    original = batch_of(A, Rec(b"b" * 20, key=b"k", headers=[(b"h", b"v"), (b"i", None)]), C)
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(61, len(original) - 1))] = data.draw(st.integers(0, 255))
    maker = read(sealed(changed) + batch_of(C, base=3))
    assert maker.read[-1] == (3, b"c")
    assert len(maker.read) - 1 + sum(gap[1] for gap in maker.gaps) == 3


def test_the_tolerant_reader_reads_what_the_parser_reads():
    from msight_bus.backends.kafka.batch_parsing import HEAD_BYTES, read_head

    data = memoryview(batch_of(A, Rec(None, key=b"k", headers=[(b"h", None), (b"h", b"v")], timestamp_delta=5)))
    records = list(read_records(data[HEAD_BYTES:], read_head(data)))
    from aiokafka.record.default_records import DefaultRecordBatch

    parsed = list(DefaultRecordBatch(bytes(data)))
    for name in ("offset", "timestamp", "key", "value", "headers"):
        assert [getattr(each, name) for each in records] == [getattr(each, name) for each in parsed]
