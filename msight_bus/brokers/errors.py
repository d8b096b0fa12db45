"""What can go wrong before a broker answers.

BusError
└── BrokerUnavailableError      it did not start, or did not answer in time
    ├── NoBrokerError           no such server program can be had on this machine
    └── PortTakenError          something else listens on the port
"""

from __future__ import annotations

from msight_bus.errors import BusError


class BrokerUnavailableError(BusError):
    """A broker that was asked for does not run; if it left a log, the message ends with its last lines."""


class NoBrokerError(BrokerUnavailableError):
    """No server program was found or could be fetched; the message lists every way to get one."""


class PortTakenError(BrokerUnavailableError):
    """The port belongs to somebody else, whom we leave alone."""


class NotHereError(Exception):
    """One way to get a server is not open on this machine; the text says why. The next way is tried."""
