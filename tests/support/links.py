"""Connections without a socket, and a connector that opens them by a script."""

from __future__ import annotations

import asyncio

from msight_bus.backends.pubsub.connection import Connection, Route
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.errors import BusError, ConnectionLostError
from msight_bus.message import Message


class Link(Connection):
    """A connection that confirms everything at once.

    Attributes:
        refusal: what it answers to a subscription instead.
    """

    refusal: BusError | None = None

    def publish(self, sender, counter, payload, key, headers) -> None:
        counter.sequence += 1
        self.in_flight.wrote(sender)
        self.in_flight.confirm(1)

    def ping(self) -> Request:
        self.received_at = self.loop.time()
        request = Request(self.loop)
        request.finish()
        return request

    def subscribe(self, route: Route) -> Request:
        self.add_route(route, route.topic.encode())
        request = Request(self.loop, route.topic)
        request.finish(self.refusal)
        return request

    def hears(self, topic: str) -> bool:
        """Whether something is subscribed to a topic."""
        return topic.encode() in self._routes

    def deliver(self, topic: str, *messages: Message) -> None:
        """Messages come on a topic."""
        for route in self._routes[topic.encode()]:
            route.stream.deliver(list(messages))

    def unsubscribe(self, route: Route) -> Request:
        self.forget_route(route)
        return self.ping()

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def fail(self, error: BusError) -> None:
        if not self.gone.done():
            self._end(error)

    async def close(self, within: float) -> None:
        self.fail(ConnectionLostError("closed"))


class Script:
    """A connector that does what is next: raises it, or opens a link and calls it with that (reconnecting.Connector)."""

    where = "the script"
    refusal_patience = 0.0

    def __init__(self, *steps) -> None:
        self.steps = list(steps)
        self.links: list[Link] = []

    async def connect(self, on_lost, *, publishes, on_refused, on_leaving) -> Link:
        await asyncio.sleep(0)
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        link = Link(on_lost)
        self.links.append(link)
        if step is not None:
            step(link)
        return link


def cut(link: Link) -> None:
    link.fail(ConnectionLostError("cut"))
