"""Errors of starting a broker.

BusError
└── BrokerUnavailableError      the broker did not start, or did not answer in time
    ├── NoBrokerError           no server program was found or downloaded
    └── PortTakenError          another program listens on the port
"""

from __future__ import annotations

from msight_bus.errors import BusError


class BrokerUnavailableError(BusError):
    """A broker did not start; the message ends with the last lines of its log, if there are any."""


class NoBrokerError(BrokerUnavailableError):
    """No server program was found or downloaded; the message lists the ways to install one."""


class PortTakenError(BrokerUnavailableError):
    """Another program listens on the port."""


class ServerNotFoundError(Exception):
    """A server program is not available from one source; the text gives the reason. The next source is tried."""
