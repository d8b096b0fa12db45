"""The simulated network: injects faults between the exchange and the subscriptions, and disconnects buses."""

from __future__ import annotations

from collections.abc import Callable

from msight_bus.backends.memory import Delivery, Exchange, MemoryConnection, MemoryConnector, Sent
from msight_bus.backends.pubsub.connection import LeavingCallback, LostCallback, RefusedCallback
from msight_bus.errors import ConnectionLostError
from msight_bus.settings import Limits
from msight_bus.testing.clock import wall_clock
from msight_bus.testing.faults import Faults, Injector


class FaultFilter:
    """Injects faults into deliveries (backends.memory.Filter).

    Attributes:
        injector: decides which fault happens to which delivery.
    """

    def __init__(self, faults: Faults) -> None:
        self.injector = Injector(faults)
        self._held: dict[Delivery, list[Sent]] = {}
        """Messages that are delivered after the next one."""

    def pass_on(self, delivery: Delivery, messages: list[Sent]) -> None:
        """Deliver messages, each with the fault that the injector decides."""
        ready: list[Sent] = []
        for sent in messages:
            fault = self.injector.decide(delivery.route.topic)
            if fault == "reorder":
                self._held.setdefault(delivery, []).append(sent)
                delivery.connection.loop.call_later(self.injector.faults.seconds, self._release, delivery, sent)
                continue
            if fault == "drop":
                continue
            if fault == "delay":
                self._arrive(delivery, ready)
                ready = []
                delivery.arrive([sent], self.injector.late())
            else:
                ready += [sent, sent] if fault == "duplicate" else [sent]
            ready += self._held.pop(delivery, [])
        self._arrive(delivery, ready)

    def _arrive(self, delivery: Delivery, messages: list[Sent]) -> None:
        if messages:
            delivery.arrive(messages)

    def _release(self, delivery: Delivery, sent: Sent) -> None:
        held = self._held.get(delivery, [])
        if sent in held:
            held.remove(sent)
            if not held:
                del self._held[delivery]
            delivery.arrive([sent])

    def forget(self, delivery: Delivery) -> None:
        """Discard the messages held for an ended subscription."""
        self._held.pop(delivery, None)


class Client(MemoryConnector):
    """The connector of one simulated bus.

    Attributes:
        reachable: whether the bus can connect.
    """

    def __init__(self, exchange: Exchange, limits: Limits, clock: Callable[[], float] = wall_clock) -> None:
        super().__init__(limits, exchange, clock)
        self.reachable = True
        self._connections: set[MemoryConnection] = set()

    async def connect(
        self, on_lost: LostCallback, *, publishes: bool, on_refused: RefusedCallback, on_leaving: LeavingCallback
    ) -> MemoryConnection:
        """Open a connection.

        Raises:
            ConnectionLostError: the simulation has disconnected this bus.
        """
        if not self.reachable:
            raise ConnectionLostError("The simulated broker is disconnected: call Simulation.reconnect() first.")
        connection = await super().connect(on_lost, publishes=publishes, on_refused=on_refused, on_leaving=on_leaving)
        self._connections.add(connection)
        connection.gone.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    def disconnect(self) -> None:
        """Abort every connection of the bus; messages in transit are lost."""
        for connection in list(self._connections):
            connection.fail(ConnectionLostError("The simulation disconnected this bus."))
