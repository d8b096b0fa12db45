"""Streams of a NATS server, and what our decoder and the parser of nats-py read of them."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from nats.protocol.parser import Parser

from msight_bus.protocol import nats
from msight_bus.protocol.stream_decoder import Reply

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


def arrivals(item) -> list[tuple[bytes, bytes, bytes]]:
    if len(item) == 2:
        return [each for address, frame in zip(*item, strict=True) for each in arrivals((address, [frame], []))]
    address, frames, foreign = item
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


def parse(
    *chunks: bytes, at_once: bool = False, limit: int = 4096, pause: int = 0, ordered: bool = False
) -> list[object]:
    """``at_once`` takes what came after the last chunk; so many frames are read without the cache first."""
    decoder = nats.decoder(LIMIT)
    decoder.keep_order(ordered)
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


def ours(subject: bytes, sid: bytes, sequence: int, payload: bytes) -> bytes:
    block = b"NATS/1.0\r\nmsight: %016x%016x%016x\r\n\r\n" % (7, sequence, 9)
    return b"HMSG %b %b %d %d\r\n%b%b\r\n" % (subject, sid, len(block), len(block) + len(payload), block, payload)
