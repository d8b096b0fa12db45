"""A proxy for Kafka that passes each response to a test, which can change or drop the response."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import socket
from typing import NamedTuple

from tests.support.brokers import Backend
from tests.support.proxy import HOST, FaultProxy, port_of, through

PRODUCE, FETCH, OFFSETS, METADATA, OFFSET_FETCH, DESCRIBE_GROUPS, INIT_PRODUCER_ID = 0, 1, 2, 3, 9, 15, 22


class Request(NamedTuple):
    """API keys of the requests."""

    kind: int
    version: int


Change = Callable[[Request, bytes], bytes | None]
"""Called with a request and its response; returns the response to forward, or ``None`` to close the connection."""


class _Answers(FaultProxy):
    """Advertises its own address instead of the broker's, so that all connections pass through the proxy."""

    def __init__(self, broker_port: int, change: Change) -> None:
        super().__init__(broker_port)
        self._change = change
        self._asked: dict[object, deque[Request]] = {}  # by connection; requests are answered in order
        self._there, self._here = (HOST.encode() + port.to_bytes(4, "big") for port in (broker_port, self.port))

    async def _copy(self, pair, source: socket, target: socket) -> None:  # type: ignore[no-untyped-def]
        loop = asyncio.get_running_loop()
        asked = self._asked.setdefault(pair, deque())
        data = b""
        while new := await loop.sock_recv(source, 1 << 20):
            data += new
            while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
                frame: bytes | None = data[4:end]
                data = data[end:]
                assert frame is not None
                if source is pair.sides[0]:
                    asked.append(Request(int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:4], "big")))
                else:
                    frame = self._change(asked.popleft(), frame.replace(self._there, self._here))
                if frame is None:
                    return
                await loop.sock_sendall(target, len(frame).to_bytes(4, "big") + frame)


@asynccontextmanager
async def changing_answers(kafka: Backend, change: Change) -> AsyncIterator[Backend]:
    """Yield the broker with responses changed by ``change``."""
    async with _Answers(port_of(kafka), change) as proxy:
        yield through(proxy, kafka)


def of_partition(answer: bytes, topic: str) -> int:
    """Return the offset of the error code of the topic's only partition in a response; -1 if the topic is not in it."""
    name = topic.encode()
    place = len(name).to_bytes(2, "big") + name + (1).to_bytes(4, "big") + bytes(4)
    at = answer.find(place)
    return at if at < 0 else at + len(place)


def with_code(answer: bytes, topic: str, code: int) -> bytes:
    """Return the response with another error code for the topic's first partition."""
    at = of_partition(answer, topic)
    assert at >= 0
    return answer[:at] + code.to_bytes(2, "big", signed=True) + answer[at + 2 :]
