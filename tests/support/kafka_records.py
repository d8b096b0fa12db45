"""Encode record batches of format 2, and send them unchanged."""

from __future__ import annotations

import asyncio
import gzip
import struct
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

from msight_bus.backends.kafka.client import client_options

LEADERLESS = (3, 5, 6)
"""Errors of a partition that is being created."""

NOW_MS = 1_700_000_000_000


def varint(value):
    """Encode a number as a zigzag varint."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sized(value):
    """Encode bytes with their length; ``None`` has the length -1."""
    return varint(-1) if value is None else varint(len(value)) + value


@dataclass
class Rec:
    """A record; ``raw`` replaces all other fields, after the length."""

    value: bytes | None = b""
    key: bytes | None = None
    headers: list = field(default_factory=list)
    attributes: int = 0
    timestamp_delta: int = 0
    offset_delta: int | None = None
    raw: bytes | None = None
    length: int | None = None

    def encoded(self, index):
        """Return the encoded record."""
        if (body := self.raw) is None:
            body = bytes([self.attributes]) + varint(self.timestamp_delta)
            body += varint(index if self.offset_delta is None else self.offset_delta)
            body += sized(self.key) + sized(self.value) + varint(len(self.headers))
            body += b"".join(sized(name) + sized(value) for name, value in self.headers)
        return varint(len(body) if self.length is None else self.length) + body


def batch_of(*records, codec=0, attributes=0, base=0, count=None, last=None, timestamp=NOW_MS, crc=None):
    """Encode a batch; ``codec`` is 0, or 1 for gzip."""
    body = b"".join(record.encoded(index) for index, record in enumerate(records))
    if codec == 1:
        body = gzip.compress(body)
    count = len(records) if count is None else count
    last = len(records) - 1 if last is None else last
    tail = struct.pack(">hiqqqhii", attributes | codec, last, timestamp, timestamp, -1, -1, -1, count) + body
    crc = calc_crc32c(tail) if crc is None else crc
    return struct.pack(">qiibI", base, len(tail) + 9, -1, 2, crc) + tail


def now_ms():
    """Return the current time as a record's timestamp, in ms."""
    return int(time.time() * 1000)


@asynccontextmanager
async def raw_producer(kafka):
    """Yield a function ``produce(topic, batch, partition=0)`` that raises the broker's error."""
    options = client_options(kafka.settings())
    client = AIOKafkaClient(**options)
    await client.bootstrap()

    async def produce(topic, batch, partition=0):
        while (error := await send(topic, batch, partition)) in LEADERLESS:
            await asyncio.sleep(0.05)
            await client.force_metadata_update()
        assert error == 0, f"the broker refused the batch with error {error}"

    async def send(topic, batch, partition):
        await client._wait_on_metadata(topic)
        node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        if node in (None, -1):
            return LEADERLESS[0]
        response = await client.send(node, ProduceRequest(None, -1, 5000, [(topic, [(partition, batch)])]))
        ((_, ((_, error, *_),)),) = response.topics
        return error

    try:
        yield produce
    finally:
        await client.close()
