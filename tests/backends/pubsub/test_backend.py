"""What several connections of one bus have to do with each other, over a scripted connector."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from msight_bus import QueuePolicy
from msight_bus.backends.base import Selection
from msight_bus.backends.memory import MemoryConnector
from msight_bus.backends.pubsub.backend import PubSubBackend
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.events import Disconnected, Reconnected
from msight_bus.message import Message
from msight_bus.settings import BusSettings, Limits
from msight_bus.subscription.inbox import Inbox
from msight_bus.topics import SEQUENCE_TOPIC
from tests.support.links import Script, cut


class Broker(Script):
    """The same for a whole bus."""

    shares_connection = True
    announces = False
    capabilities = MemoryConnector(Limits()).capabilities


def backend_at(broker: Broker, events: list) -> PubSubBackend:
    settings = BusSettings(environ={"MSIGHT_PUBSUB_BACKEND": "redis", "MSIGHT_CONNECT_TIMEOUT": "3"})
    return PubSubBackend(settings, broker, events.append, lambda: 7)


async def subscribe(backend: PubSubBackend, queue: QueuePolicy):
    selection = Selection(("a",), None, queue, "latest")
    inbox = Inbox(
        selection,
        counts=True,
        deadline=None,
        most=10,
        clock=asyncio.get_running_loop().time,
        report=lambda event: None,
        on_full=lambda: consumer.pause(),  # noqa: PLW0108 - it comes later
        on_room=lambda: consumer.resume(),  # noqa: PLW0108
    )
    consumer = await backend.subscribe(selection, inbox)
    return consumer


async def test_a_subscription_that_ends_while_it_is_away_does_not_keep_the_bus_disconnected(msight_simulation):
    events: list = []
    broker = Broker()
    backend = backend_at(broker, events)
    await backend.open()
    consumer = await subscribe(backend, QueuePolicy.block(10))
    common, own = broker.links
    broker.steps = [ConnectionLostError("away")] * 1000
    cut(own)
    await asyncio.sleep(60)
    await consumer.close()
    broker.steps = []
    events.clear()
    cut(common)
    await asyncio.sleep(60)
    assert [type(event) for event in events] == [Disconnected, Reconnected]
    await backend.close()


@pytest.mark.parametrize("error", [AuthenticationError("no"), ConnectionLostError("away")])
async def test_entering_that_fails_leaves_no_connection_behind(msight_simulation, error):
    events: list = []
    broker = Broker()
    backend = backend_at(broker, events)
    await backend.open()
    broker.steps = [lambda link: setattr(link, "refusal", error)]
    with pytest.raises(BusError):
        await subscribe(backend, QueuePolicy.block(10))
    assert [link.gone.done() for link in broker.links] == [False, True]
    assert not backend._dedicated
    await backend.close()


async def test_a_full_queue_holds_the_stream_up_for_block_timeout_at_most(msight_simulation):
    """The broker would cut a reader that stalls for longer."""
    broker = Broker()
    backend = backend_at(broker, [])
    await backend.open()
    consumer = await subscribe(backend, QueuePolicy.block(2))
    queue, link = consumer.inbox.queue, broker.links[1]
    link.deliver("a", *(Message("a", b"%d" % i) for i in range(3)))
    assert (consumer.paused, link.reading_paused) == (True, True)
    await asyncio.sleep(60)
    assert (consumer.paused, link.reading_paused) == (False, False)
    link.deliver("a", Message("a", b"3"))
    assert [message.payload for message in queue.take(10)] == [b"0", b"1"]
    assert queue.dropped == {"block_timeout": 2}
    link.deliver("a", *(Message("a", b"%d" % i) for i in range(4, 7)))
    assert (consumer.paused, link.reading_paused) == (True, True)
    queue.take(3)
    assert (consumer.paused, link.reading_paused) == (False, False)
    await backend.close()


async def test_listening_for_announcements_that_failed_is_tried_again_with_the_next_subscription(msight_simulation):
    broker = Broker()
    broker.announces = True
    backend = backend_at(broker, [])
    await backend.open()
    (link,) = broker.links
    link.refusal = BusError("busy")
    with pytest.raises(BusError, match="busy"):
        await subscribe(backend, QueuePolicy.drop_oldest(10))
    link.refusal = None
    await subscribe(backend, QueuePolicy.drop_oldest(10))
    assert link.hears(SEQUENCE_TOPIC)
    await backend.close()


@pytest.mark.parametrize("whose", ["another's", "its own"])
async def test_only_announcements_of_others_show_that_announcements_come(msight_simulation, whose):
    """A bus hears its own wherever it subscribes."""
    broker = Broker()
    broker.announces = True
    backend = backend_at(broker, [])
    await backend.open()
    backend.publisher("b", None, keeps=True)  # with session 7
    await subscribe(backend, QueuePolicy.drop_oldest(10))
    (link,) = broker.links
    announcement = msgspec.msgpack.encode((8 if whose == "another's" else 7, {"b": 1}))
    link.deliver(SEQUENCE_TOPIC, Message(SEQUENCE_TOPIC, announcement))
    link.deliver("a", Message("a", b"", session=9, sequence=1, received_at=asyncio.get_running_loop().time()))
    await asyncio.sleep(60)
    assert backend.capabilities.tail_loss is (whose == "another's")
    await backend.close()
