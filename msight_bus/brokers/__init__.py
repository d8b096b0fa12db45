"""Real brokers on a bare machine: found or fetched, started on loopback, and gone when we are gone.

    from msight_bus import brokers

    with brokers.start("redis") as broker:
        print(broker.name, broker.version, broker.port)

Nothing here needs root or Docker, and nothing touches a server that it did not start.
"""

from msight_bus.brokers.errors import BrokerUnavailableError, NoBrokerError, PortTakenError
from msight_bus.brokers.ports import free_port
from msight_bus.brokers.running import KINDS, KindName, RunningBroker, start

__all__ = [
    "KINDS",
    "BrokerUnavailableError",
    "KindName",
    "NoBrokerError",
    "PortTakenError",
    "RunningBroker",
    "free_port",
    "start",
]
