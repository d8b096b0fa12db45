"""Records of one's own and of others, as aiokafka's parser gives them, in any order."""

from __future__ import annotations

from itertools import islice

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.adapters.kafka.records import offset_of, to_messages

OURS = b"%016x%016x%016x" % (7, 8, 1_700_000_000_000_000_000)
RECORDS = {  # key, value, headers: what a message shows of them
    "ours": ((None, b"a", [("msight", OURS)]), (None, b"a", {}, 7, 8, 1_700_000_000.0)),
    "ours, empty": ((None, b"", [("msight", OURS)]), (None, b"", {}, 7, 8, 1_700_000_000.0)),
    "keyed": ((b"k", b"b", [("msight", OURS)]), ("k", b"b", {}, 7, 8, 1_700_000_000.0)),
    "with a user's header": (
        (None, b"c", [("msight", OURS), ("trace", b"\xff1")]),
        (None, b"c", {"trace": "\N{REPLACEMENT CHARACTER}1"}, 7, 8, 1_700_000_000.0),
    ),
    "foreign": ((None, b"d", []), (None, b"d", {}, None, None, None)),
    "foreign header": ((None, b"e", [("other", OURS)]), (None, b"e", {"other": OURS.decode()}, None, None, None)),
    "no value": ((b"k", None, []), ("k", b"", {}, None, None, None)),
    "no value, ours": ((None, None, [("msight", OURS)]), (None, b"", {}, 7, 8, 1_700_000_000.0)),
    "header of another length": ((None, b"f", [("msight", OURS[1:])]), (None, b"f", {}, None, None, None)),
    "header without a value": ((None, b"g", [("msight", None)]), (None, b"g", {}, None, None, None)),
    "header that is no number": ((None, b"h", [("msight", b"z" * 48)]), (None, b"h", {}, None, None, None)),
}


def parsed(names):
    builder = BatchBuilder(1_000_000, 0)
    for name in names:
        key, value, headers = RECORDS[name][0]
        assert builder.append(timestamp=1, key=key, value=value, headers=headers) is not None
    return MemoryRecords(bytes(builder._build())).next_batch()


@given(st.lists(st.sampled_from([*RECORDS, "ours", "ours"]), min_size=1, max_size=12))
def test_every_record_is_one_message_with_what_it_carries(names):
    messages = to_messages("t", islice(parsed(names), None), 5.0, None)
    assert [(m.key, m.payload, dict(m.headers), m.session, m.sequence, m.published_at) for m in messages] == [
        RECORDS[name][1] for name in names
    ]
    assert [(m.topic, m.received_at, offset_of(m)) for m in messages] == [("t", 5.0, i) for i in range(len(names))]
