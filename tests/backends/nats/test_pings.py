"""A server that asks and never reads is answered once, when it reads again."""

from __future__ import annotations

import asyncio

from msight_bus.backends.nats.connection import NatsConnection


class Transport:
    """Keeps what is written."""

    def __init__(self):
        self.written = b""

    def get_extra_info(self, name):
        return None

    def set_protocol(self, protocol):
        pass

    def is_closing(self):
        return False

    def resume_reading(self):
        pass

    def get_write_buffer_size(self):
        return 0

    def write(self, data):
        self.written += data

    def writelines(self, parts):
        self.written += b"".join(parts)


async def test_a_server_that_does_not_read_is_owed_one_pong():
    transport = Transport()
    connection = NatsConnection(
        transport,
        lambda *_: None,
        lambda *_: None,
        lambda *_: None,
        max_payload=1 << 20,
        max_received=1 << 20,
        on_info=lambda info: None,
    )
    connection.take_over(b"")
    connection.data_received(b"PING\r\n" * 2)
    await asyncio.sleep(0)
    assert transport.written == b"PONG\r\n" * 2
    connection.pause_writing()
    connection.data_received(b"PING\r\n" * 1000)
    await asyncio.sleep(0)
    assert transport.written == b"PONG\r\n" * 2
    connection.resume_writing()
    await asyncio.sleep(0)
    assert transport.written == b"PONG\r\n" * 3
