"""What the kernel tells of a connection, on real sockets; and when a peer is given up, on a virtual clock."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import closing

import pytest

from msight_bus.backends.pubsub import liveness
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.liveness import Progress, watch
from msight_bus.settings import Limits

linux = pytest.mark.skipif(sys.platform != "linux", reason="tells of acknowledged bytes on Linux only")


def tcp_pair(family: int = socket.AF_INET, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    with closing(socket.socket(family)) as listener:
        listener.bind((host, 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    return near, far


async def settled(progress: Progress, end: int) -> None:
    async with asyncio.timeout(5):
        while progress.acknowledged < end:
            await asyncio.sleep(0.005)


@linux
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_what_the_peer_has_is_acknowledged(family, host):
    near, far = tcp_pair(family, host)
    with near, far:
        progress = Progress(near)
        start = progress.acknowledged
        near.sendall(bytes(1000))
        await settled(progress, start + 1000)
        assert progress.acknowledged == start + 1000
        assert progress.end_of(0) == start + 1000
        assert progress.end_of(500) == start + 1500


@linux
async def test_the_end_lies_behind_what_the_kernel_and_the_bus_hold():
    near, far = tcp_pair()
    with near, far:
        progress = Progress(near)
        start = progress.acknowledged
        near.setblocking(False)
        written = 0
        with pytest.raises(BlockingIOError):
            while True:
                written += near.send(bytes(100_000))
        end = progress.end_of(77)
        assert end == start + written + 77
        assert progress.acknowledged < start + written  # the peer does not read
        far.setblocking(False)
        read = 0
        async with asyncio.timeout(5):
            while read < written:
                try:
                    read += len(far.recv(1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        await settled(progress, end - 77)
        assert progress.acknowledged == end - 77


@pytest.mark.parametrize("kind", ["none", "unix", "closed"])
async def test_where_the_kernel_tells_nothing_there_is_no_progress(kind):
    if kind == "none":
        progress = Progress(None)
    elif kind == "unix":
        near, far = socket.socketpair()
        with near, far:
            progress = Progress(near)
            assert (progress.acknowledged, progress.end_of(10)) == (None, None)
    else:
        near, far = tcp_pair()
        progress = Progress(near)
        near.close()
        far.close()
    assert (progress.acknowledged, progress.end_of(10)) == (None, None)


# -- watching


class Connection:
    """A connection whose peer answers, or does not (pubsub.connection.Connection)."""

    socket = None
    unsent_bytes = 0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.received_at = self.loop.time()
        self.reading_paused = False
        self.answers = True
        self.pings: list[float] = []
        self.failure: tuple[float, str] | None = None

    def ping(self) -> Request:
        self.pings.append(self.loop.time())
        request = Request(self.loop)
        if self.answers:
            self.loop.call_soon(self._answer, request)
        return request

    def _answer(self, request: Request) -> None:
        self.received_at = self.loop.time()
        request.finish()

    def fail(self, error) -> None:
        self.failure = self.loop.time(), str(error)
        self.gone.set_result(None)


class Slow(Progress):
    """The peer's TCP acknowledges some bytes a second, up to a point."""

    def __init__(self, rate: float, stops_after: float) -> None:
        self.start = asyncio.get_running_loop().time()
        self.rate = rate
        self.stops_after = stops_after

    @property
    def acknowledged(self) -> int:
        return int(self.rate * min(asyncio.get_running_loop().time() - self.start, self.stops_after))

    def end_of(self, unsent: int) -> int:
        return self.acknowledged + unsent


LIMITS = Limits(ping_interval=10.0, pong_timeout=5.0)


async def watching(connection: Connection, seconds: float) -> None:
    task = asyncio.create_task(watch(connection, LIMITS))
    await asyncio.wait((task,), timeout=seconds)
    if not task.done():
        connection.gone.set_result(None)
    await task


async def test_a_quiet_peer_is_asked_at_each_interval(msight_simulation):
    connection = Connection()
    start = connection.loop.time()
    await watching(connection, 35)
    assert [at - start for at in connection.pings] == pytest.approx([10, 20, 30], abs=0.1)
    assert connection.failure is None


async def test_a_peer_that_talks_is_not_asked(msight_simulation):
    connection = Connection()

    async def talk():
        while not connection.gone.done():
            connection.received_at = connection.loop.time()
            await asyncio.sleep(3)

    talking = asyncio.create_task(talk())
    await watching(connection, 100)
    await talking
    assert connection.pings == []


async def test_a_peer_that_does_not_answer_is_given_up_after_interval_and_timeout(msight_simulation):
    connection = Connection()
    connection.answers = False
    start = connection.loop.time()
    await watching(connection, 100)
    at, text = connection.failure
    assert at - start == pytest.approx(15, abs=0.1)
    assert "15 s" in text


async def test_what_is_left_unread_on_purpose_is_no_silence(msight_simulation):
    connection = Connection()
    connection.answers, connection.reading_paused = False, True
    await watching(connection, 100)
    assert (connection.pings, connection.failure) == ([], None)


async def test_what_is_left_unread_while_an_answer_is_awaited_is_no_silence(msight_simulation):
    connection = Connection()
    connection.answers = False
    connection.loop.call_later(12.0, setattr, connection, "reading_paused", True)
    await watching(connection, 100)
    assert (len(connection.pings), connection.failure) == (1, None)


class AtOnce(Progress):
    """The peer's TCP acknowledges nothing for 4 seconds, and then everything."""

    def __init__(self) -> None:
        self.start = asyncio.get_running_loop().time()

    @property
    def acknowledged(self) -> int:
        return 0 if asyncio.get_running_loop().time() - self.start < 4.0 else 40_000

    def end_of(self, unsent: int) -> int:
        return unsent


async def test_an_answer_has_its_whole_deadline_from_when_the_question_is_there(msight_simulation, monkeypatch):
    connection = Connection()
    connection.answers = False
    connection.unsent_bytes = 40_000
    monkeypatch.setattr(liveness, "Progress", lambda sock: AtOnce())
    start = connection.loop.time()
    await watching(connection, 200)
    assert connection.failure[0] - start == pytest.approx(10 + 4 + 5, abs=1.0)


@pytest.mark.parametrize(
    ("stops_after", "given_up"),
    [
        (1000.0, 10 + 40 + 5),  # the question is there after 40 s, and its answer has a deadline of 5 s
        (20.0, 10 + 20 + 5),  # nothing advances any more
    ],
)
async def test_a_slow_link_counts_from_when_bytes_advance_no_more(
    msight_simulation, monkeypatch, stops_after, given_up
):
    connection = Connection()
    connection.answers = False
    connection.unsent_bytes = 40_000
    monkeypatch.setattr(liveness, "Progress", lambda sock: Slow(1000.0, stops_after))
    start = connection.loop.time()
    await watching(connection, 200)
    assert connection.failure[0] - start == pytest.approx(given_up, abs=1.0)
