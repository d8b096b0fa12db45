"""Connections without a socket, and a connector that opens them as scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msight_bus.backends.pubsub.connection import Connection
from msight_bus.backends.pubsub.in_flight import Request
from msight_bus.backends.pubsub.routes import Route
from msight_bus.errors import BusError, ConnectionLostError
from msight_bus.message import Message


class ScriptedConnection(Connection):
    """A connection that confirms every request at once.

    Attributes:
        refusal: error with which subscriptions are refused.
        unanswered: if a list, collects the requests of subscriptions without an answer.
        mute: whether pings are not answered.
    """

    mute = False
    refusal: BusError | None = None
    unanswered: list[Request] | None = None

    def publish(self, sender, counter, payload, key, headers) -> None:
        counter.sequence += 1
        self.in_flight.wrote(sender)
        self.in_flight.confirm(1)

    def ping(self) -> Request:
        request = Request(self.loop)
        if not self.mute:
            self.received_at = self.loop.time()
            self.in_flight.confirm(1_000_000)
            request.finish()
        return request

    def subscribe(self, route: Route) -> Request:
        self.add_route(route, route.topic.encode())
        request = Request(self.loop, route.topic)
        if self.unanswered is None:
            request.finish(self.refusal)
        else:
            self.unanswered.append(request)
        return request

    def hears(self, topic: str) -> bool:
        """Return whether a topic is subscribed to."""
        return topic.encode() in self._routes

    def deliver(self, topic: str, *messages: Message) -> None:
        """Deliver messages on a topic."""
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
    """A connector (reconnecting.Connector) that executes steps: raises an error, or opens a connection and calls the step."""

    where = "the script"
    refusal_patience = 0.0

    def __init__(self, *steps) -> None:
        self.steps = list(steps)
        self.links: list[ScriptedConnection] = []
        self.on_leaving: Callable[[Connection], None] = lambda opened: None

    async def connect(self, on_lost, *, publishes, on_refused, on_leaving) -> ScriptedConnection:
        self.on_leaving = on_leaving
        await asyncio.sleep(0)
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        opened = ScriptedConnection(on_lost)
        self.links.append(opened)
        if step is not None:
            step(opened)
        return opened


def cut(opened: ScriptedConnection) -> None:
    opened.fail(ConnectionLostError("cut"))
