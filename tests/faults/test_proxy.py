"""The fault proxy injects exactly the faults that a test requests."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import HOST, FaultProxy


@asynccontextmanager
async def echo_through_proxy(seed=0):
    async def echo(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    async with FaultProxy(server.sockets[0].getsockname()[1], seed=seed) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        yield proxy, reader, writer
        writer.close()
    server.close()
    await server.wait_closed()


async def test_every_byte_passes_in_order_under_any_fault():
    data = bytes(range(256)) * 8
    async with echo_through_proxy() as (proxy, reader, writer):
        for delay, rate, slices in ((0, None, None), (0.001, None, 1500), (0, 100_000, None), (0, None, 1)):
            proxy.conditions.delay, proxy.conditions.rate, proxy.conditions.slices = delay, rate, slices
            writer.write(data)
            assert await reader.readexactly(len(data)) == data


async def test_single_bytes_arrive_alone():
    async with echo_through_proxy() as (proxy, reader, writer):
        proxy.conditions.slices = 1
        writer.write(bytes(300))
        reads = []
        while sum(reads) < 300:
            reads.append(len(await reader.read(65536)))
    assert len(reads) > 100


async def test_a_stalled_proxy_accepts_and_forwards_nothing():
    async with echo_through_proxy() as (proxy, reader, writer):
        proxy.stall()
        writer.write(b"held")
        _, other = await asyncio.open_connection(HOST, proxy.port)
        reading = asyncio.create_task(reader.readexactly(4))
        await asyncio.wait((reading,), timeout=0.1)
        assert not reading.done()
        proxy.flow()
        assert await reading == b"held"
        other.close()


async def test_a_cut_forwards_exactly_the_given_number_of_bytes():
    async with echo_through_proxy() as (proxy, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.cut_after(6)
        writer.write(b"1234")
        assert await reader.read() == b"12"  # four one way and two the other
        assert proxy.faults == 1


async def test_a_reset_is_a_reset():
    async with echo_through_proxy() as (proxy, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")
async def test_with_a_small_buffer_a_slow_uplink_acknowledges_no_faster_than_it_forwards():
    received = 0

    async def count(reader, writer):
        nonlocal received
        while data := await reader.read(65536):
            received += len(data)
        writer.close()

    def acknowledged():
        info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return struct.unpack_from("=Q", info, 120)[0]

    server = await asyncio.start_server(count, HOST, 0)
    async with FaultProxy(server.sockets[0].getsockname()[1], receive_buffer=8192) as proxy:
        proxy.conditions.uplink = 400_000
        _, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(bytes(500_000))
        while received < 300_000:
            await asyncio.sleep(0.01)
            assert acknowledged() <= received + 64 * 1024
        assert acknowledged() > 200_000
        proxy.conditions.uplink = None
        while received < 500_000:
            await asyncio.sleep(0.01)
        writer.close()
    server.close()
    await server.wait_closed()
