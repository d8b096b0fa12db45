"""Reading is paused, resumed or ended in any turn of the loop: the transport reads again, and what was read is delivered."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus.backends.pubsub.routes import Route
from msight_bus.backends.redis.connection import RedisConnection

MESSAGES = 300
FULL_READ = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1000\r\n%b\r\n" % bytes(1000) * MESSAGES
SMALL = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$0\r\n\r\n"


class Transport:
    """A socket whose reading can be paused."""

    reads = True

    def get_extra_info(self, name):
        return None

    def set_protocol(self, protocol):
        pass

    def is_closing(self):
        return False

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True

    def get_write_buffer_size(self):
        return 0

    def writelines(self, parts):
        pass


class Stream:
    """Counts what is delivered."""

    count = 0

    def deliver(self, batch):
        self.count += len(batch)


def connected(transport: Transport, stream: Stream) -> RedisConnection:
    connection = RedisConnection(transport, lambda *_: None, raw=False, max_bytes=1 << 20, max_received=1 << 20)
    connection.take_over(b"")
    connection.add_route(Route("a", None, stream, lambda error: None), b"a")
    return connection


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("reads", [1, 2, 4])
async def test_what_was_read_before_a_connection_was_lost_is_delivered(turns, reads):
    """However much more it is than a turn of the loop takes."""
    stream = Stream()
    connection = connected(Transport(), stream)
    for _ in range(reads):
        connection.data_received(SMALL * 5000)
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    assert stream.count == 5000 * reads


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_reads_again_after_a_pause_in_any_turn_behind_a_full_read(turns):
    transport, stream = Transport(), Stream()
    connection = connected(transport, stream)
    connection.data_received(FULL_READ)
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.pause_reading()
    assert not transport.reads
    for _ in range(6):
        await asyncio.sleep(0)
    connection.resume_reading()
    for _ in range(6):
        await asyncio.sleep(0)
    assert transport.reads
    assert stream.count == MESSAGES
