"""Records of one's own and of others, as aiokafka's parser gives them, in any order."""

from __future__ import annotations

from itertools import islice

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.backends.kafka.batch_parsing import Record
from msight_bus.backends.kafka.records import RecordHeaders, offset_of, to_messages

OURS = b"%016x%016x%016x" % (7, 8, 1_700_000_000_000_000_000)
NO_SEQUENCE = b"%016x%016x%016x" % (7, 0, 1_700_000_000_000_000_000)
NOW = 1_800_000_000.0
AT_MS = 1_600_000_000_123
AT = 1_600_000_000.123
RECORDS = {  # key, value, headers: what a message shows of them
    "ours": ((None, b"a", [("msight", OURS)]), (None, b"a", {}, 7, 8, 1_700_000_000.0)),
    "ours, empty": ((None, b"", [("msight", OURS)]), (None, b"", {}, 7, 8, 1_700_000_000.0)),
    "keyed": ((b"k", b"b", [("msight", OURS)]), ("k", b"b", {}, 7, 8, 1_700_000_000.0)),
    "with a user's header": (
        (None, b"c", [("msight", OURS), ("trace", b"\xff1")]),
        (None, b"c", {"trace": "\udcff1"}, 7, 8, 1_700_000_000.0),
    ),
    "foreign": ((None, b"d", []), (None, b"d", {}, None, None, AT)),
    "foreign header": ((None, b"e", [("other", OURS)]), (None, b"e", {"other": OURS.decode()}, None, None, AT)),
    "key that is no text": ((b"\xff\xfe", b"d", []), ("\udcff\udcfe", b"d", {}, None, None, AT)),
    "repeated header": (
        (None, b"d", [("h", b"1"), ("i", None), ("h", b"2")]),
        (None, b"d", {"h": "2", "i": ""}, None, None, AT),
    ),
    "no value": ((b"k", None, []), ("k", b"", {}, None, None, AT)),
    "no value, ours": ((None, None, [("msight", OURS)]), (None, b"", {}, 7, 8, 1_700_000_000.0)),
    "header of another length": ((None, b"f", [("msight", OURS[1:])]), (None, b"f", {}, None, None, AT)),
    "header without a value": ((None, b"g", [("msight", None)]), (None, b"g", {}, None, None, AT)),
    "header of zeros": ((None, b"g", [("msight", b"0" * 48)]), (None, b"g", {}, None, None, AT)),
    "header with a sequence of 0": ((None, b"g", [("msight", NO_SEQUENCE)]), (None, b"g", {}, None, None, AT)),
    "header that is no number": ((None, b"h", [("msight", b"z" * 48)]), (None, b"h", {}, None, None, AT)),
}


def parsed(names):
    builder = BatchBuilder(1_000_000, 0)
    for name in names:
        key, value, headers = RECORDS[name][0]
        assert builder.append(timestamp=AT_MS, key=key, value=value, headers=headers) is not None
    return MemoryRecords(bytes(builder._build())).next_batch()


@given(st.lists(st.sampled_from([*RECORDS, "ours", "ours"]), min_size=1, max_size=12), st.sampled_from([None, 100]))
def test_every_record_is_one_message_with_what_it_carries(names, first):
    messages = to_messages("t", islice(parsed(names), None), NOW, None, first)
    assert [(m.key, m.payload, dict(m.headers), m.session, m.sequence, m.published_at) for m in messages] == [
        RECORDS[name][1] for name in names
    ]
    assert [(m.topic, m.received_at, offset_of(m)) for m in messages] == [
        ("t", NOW, (first or 0) + i) for i in range(len(names))
    ]
    assert [m.tombstone for m in messages] == [RECORDS[name][0][1] is None for name in names]


@pytest.mark.parametrize(
    ("timestamp", "published_at"),
    [
        (None, None),
        (-1, None),
        (0, None),
        (946_684_799_999, None),
        (946_684_800_000, 946_684_800.0),
        (1_800_086_400_000, 1_800_086_400.0),
        (1_800_086_400_001, None),
        (2**63 - 1, None),
    ],
)
def test_a_timestamp_that_can_be_no_publish_time_is_none(timestamp, published_at):
    record = Record(0, timestamp, None, b"", [])
    assert to_messages("t", iter([record]), NOW, None)[0].published_at == published_at


def test_all_headers_of_a_record_are_kept_as_they_came():
    raw = [("h", b"1"), ("i", None), ("h", b"\xff")]
    record = Record(0, AT_MS, None, b"", [*raw, ("msight", OURS)])
    headers = to_messages("t", iter([record]), NOW, None)[0].headers
    assert isinstance(headers, RecordHeaders)
    assert headers.raw == raw
    assert headers == {"h": "\udcff", "i": ""}
    with pytest.raises(TypeError):
        headers["h"] = "3"
