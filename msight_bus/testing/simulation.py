"""`Simulation`: buses that share one in-memory broker, and the faults to inject."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from msight_bus.backends.base import Backend
from msight_bus.backends.memory import Exchange
from msight_bus.backends.pubsub.backend import PubSubBackend
from msight_bus.bus import Bus, Connecting
from msight_bus.core import Core
from msight_bus.errors import ClosedError, ConfigError
from msight_bus.events import BusEvent
from msight_bus.runtime import running_loop
from msight_bus.settings import BusSettings
from msight_bus.testing.clock import VirtualClockLoop, clock_of, wall_clock
from msight_bus.testing.faults import Fault, Faults, Injector
from msight_bus.testing.network import Client, FaultFilter

T = TypeVar("T")


class Simulation:
    """An in-memory broker whose connections fail on command or at random.

    Only the connections and the routing, which is that of the memory backend, are simulated. Liveness, reconnecting and gap
    detection run the code of the Redis and NATS backends. The broker has no persistence.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self._exchange = Exchange()
        self._filter = self._exchange.filter = FaultFilter(Faults() if faults is None else faults)
        self._reachable = True
        self._clients: dict[Bus, Client] = {}
        self._sessions = _sessions(self.faults.seed)

    # -- running

    def run(self, coroutine: Coroutine[object, object, T], *, within: float = 3600.0) -> T:
        """Run ``coroutine`` on a virtual clock, with all randomness seeded by `Faults.seed`.

        Args:
            coroutine: the scenario.
            within: virtual seconds.

        Raises:
            TimeoutError: the scenario did not end within ``within`` virtual seconds.
            TypeError: ``coroutine`` is not a coroutine.
            RuntimeError: an event loop is already running in this thread.
        """
        if not isinstance(coroutine, Coroutine):
            name = getattr(coroutine, "__name__", None)
            given = type(coroutine).__name__ if name is None else f"the function {name!r}"
            raise TypeError(
                f"Simulation.run takes a coroutine, not {given}; call the coroutine function: run(scenario())."
            )
        if running_loop() is not None:
            coroutine.close()
            raise RuntimeError(
                "Simulation.run() cannot be called while an event loop is running: await the scenario instead, with the fixture "
                "msight_simulation in an async test."
            )

        async def limited() -> T:
            limit = asyncio.timeout(within)
            try:
                async with limit:
                    return await coroutine
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise TimeoutError(
                    f"The scenario did not end within {within:g} virtual seconds; the traceback above shows where it waits. "
                    "For a longer scenario, pass run(..., within=...)."
                ) from error

        self._sessions = _sessions(self.faults.seed)
        with _seeded(self.faults.seed), asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            return runner.run(limited())

    @asynccontextmanager
    async def connect(
        self, settings: BusSettings | None = None, *, on_event: Callable[[BusEvent], None] | None = None
    ) -> AsyncIterator[Bus]:
        """Connect a bus to the simulated broker, as `msight_bus.connect` does; works on any event loop.

        Args:
            settings: settings of the bus; default: the defaults of all settings, without reading the environment.
            on_event: called with each `BusEvent`.

        Raises:
            ConfigError: the settings choose another backend than ``memory``.
            ConnectionLostError: the broker is disconnected.
        """
        settings = BusSettings(environ={}, backend="memory") if settings is None else settings
        if settings.backend != "memory":
            raise ConfigError(f"settings.backend must be 'memory' in a simulation, not {settings.backend!r}.")
        clock = clock_of(asyncio.get_running_loop())
        client = Client(self._exchange, settings.limits, clock)
        client.reachable = self._reachable

        def opener(
            settings: BusSettings, report: Callable[[BusEvent], None], new_session: Callable[[], int]
        ) -> Backend:
            return PubSubBackend(settings, client, report, new_session)

        core = Core(settings, on_event, opener=opener, clock=clock, new_session=lambda: self._sessions.getrandbits(64))
        async with Connecting(core) as bus:
            self._clients[bus] = client
            try:
                yield bus
            finally:
                del self._clients[bus]

    # -- faults

    @property
    def faults(self) -> Faults:
        """The random faults; assigning others discards the injected faults, and restarts the random sequence from their seed."""
        return self._filter.injector.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._filter.injector = Injector(faults)

    def inject(self, fault: Fault, *, topic: str | None = None, times: int = 1) -> None:
        """Inject ``fault`` into the next deliveries. A message for two subscriptions is two deliveries.

        Args:
            fault: ``"drop"``, ``"duplicate"``, ``"reorder"`` or ``"delay"``.
            topic: only deliveries on this topic; ``None``: on any topic.
            times: number of deliveries.
        """
        self._filter.injector.inject(fault, topic, times)

    def heal(self) -> None:
        """Stop all faults, random and injected, and let all buses connect."""
        self.faults = Faults(seconds=self.faults.seconds, seed=self.faults.seed)
        self.reconnect()

    def disconnect(self, bus: Bus | None = None) -> None:
        """Disconnect ``bus``, or all buses, and refuse connections until `reconnect`.

        Messages in transit are lost. For a disconnect without an outage, call `reconnect` immediately.

        Raises:
            ClosedError: ``bus`` is not open in this simulation.
        """
        self._set_reachable(bus, False)

    def reconnect(self, bus: Bus | None = None) -> None:
        """Accept connections of ``bus``, or of all buses, again; the buses reconnect by themselves, with backoff.

        Raises:
            ClosedError: ``bus`` is not open in this simulation.
        """
        self._set_reachable(bus, True)

    def _set_reachable(self, bus: Bus | None, reachable: bool) -> None:
        if bus is None:
            self._reachable = reachable
        elif bus not in self._clients:
            raise ClosedError(
                "The bus is not open in this simulation: it was closed, or connected by another simulation."
            )
        for client in self._clients.values() if bus is None else [self._clients[bus]]:
            client.reachable = reachable
            if not reachable:
                client.disconnect()

    @property
    def now(self) -> float:
        """POSIX seconds of the virtual clock, which stamps messages.

        Raises:
            RuntimeError: no event loop is running, and so no clock.
        """
        if running_loop() is None:
            raise RuntimeError(
                "Simulation.now needs a running event loop, whose clock it returns: read it inside the scenario."
            )
        return wall_clock()


def _sessions(seed: int) -> random.Random:
    """Return the random generator of session ids; changing the faults does not restart it."""
    return random.Random(f"sessions {seed}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random generator too, which the jitter of the backoff uses."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
