"""The publisher of a stream: its bound, the order of those that wait for room, and what it tells of acknowledgements."""

from __future__ import annotations

import asyncio

import pytest

from msight_bus.core import Core
from msight_bus.errors import AuthenticationError, PublishTimeoutError
from msight_bus.publisher import Publisher
from msight_bus.settings import BusSettings


class Log:
    """Acknowledges when the test says so (backends.base.TopicPublisher)."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.outcomes: list[asyncio.Future[None]] = []

    def try_send(self, payload, key, headers):
        self.sent.append(payload)
        self.outcomes.append(asyncio.get_running_loop().create_future())
        return self.outcomes[-1]

    async def send(self, payload, key, headers):
        return self.try_send(payload, key, headers)

    async def flush(self):
        pass

    def close(self):
        pass


class Backend:
    """Gives one publisher (backends.base.Backend)."""

    def __init__(self) -> None:
        self.log = Log()

    def check_topic(self, entry):
        pass

    def publisher(self, topic, name, *, keeps):
        return self.log


async def entered(max_in_flight: int) -> tuple[Publisher, Log]:
    backend = Backend()
    settings = BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "kafka", "MSIGHT_PUBLISH_TIMEOUT": "2"})
    core = Core(settings, None, opener=lambda settings, report, new_session: backend)
    core.loop = asyncio.get_running_loop()
    publisher = Publisher(core, "t", max_in_flight=max_in_flight, name=None)
    return await publisher.__aenter__(), backend.log


async def turn() -> None:
    await asyncio.sleep(0)


async def test_nobody_overtakes_whoever_waits_for_room():
    publisher, log = await entered(1)
    await publisher.send(b"1")
    second = asyncio.create_task(publisher.send(b"2"))
    await turn()
    assert log.sent == [b"1"]
    log.outcomes[0].set_result(None)
    await turn()  # there is room, and the second does not know yet
    third = asyncio.create_task(publisher.send(b"3"))
    await second
    await turn()
    log.outcomes[1].set_result(None)
    await third
    assert log.sent == [b"1", b"2", b"3"]
    assert publisher.in_flight == 1


async def test_an_acknowledgement_makes_room_for_each_message_of_its_batch():
    publisher, log = await entered(10)
    one, other = (asyncio.get_running_loop().create_future() for _ in range(2))
    batches = iter([one, one, one, other, one, other])
    log.try_send = lambda payload, key, headers: next(batches)
    for _ in range(6):
        await publisher.send(b"")
    assert publisher.in_flight == 6
    one.set_result(None)
    await turn()
    assert publisher.in_flight == 2
    other.set_result(None)
    await turn()
    assert publisher.in_flight == 0


async def test_what_was_refused_a_moment_ago_is_raised_by_the_flush_and_once():
    publisher, log = await entered(10)
    for _ in range(2):
        await publisher.send(b"")
    log.outcomes[0].set_exception(AuthenticationError("no"))
    log.outcomes[1].set_result(None)
    with pytest.raises(AuthenticationError):
        await publisher.flush()
    assert publisher.in_flight == 0
    await publisher.flush()


async def test_without_an_acknowledgement_the_bound_is_a_deadline(msight_simulation):
    publisher, log = await entered(2)
    for _ in range(2):
        await publisher.send(b"")
    start = asyncio.get_running_loop().time()
    with pytest.raises(PublishTimeoutError, match="2 messages on 't'"):
        await publisher.send(b"")
    with pytest.raises(PublishTimeoutError, match="may still arrive"):
        await publisher.flush()
    assert asyncio.get_running_loop().time() - start == pytest.approx(4, abs=0.1)
    assert len(log.sent) == 2
