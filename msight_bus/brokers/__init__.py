"""Start real brokers on a bare machine, on loopback; they end with this process.

    from msight_bus import brokers

    with brokers.start("redis") as broker:
        print(broker.name, broker.version, broker.port)

Neither root nor Docker is needed. A server program is found or downloaded. Servers that others started are not touched.
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
