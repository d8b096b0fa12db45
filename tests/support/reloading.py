"""Reload the configuration of a NATS server."""

from __future__ import annotations

import os
import signal

from msight_bus.brokers import RunningBroker
from tests.support.rig import until


class NatsServer:
    """A NATS server whose configuration can be changed."""

    def __init__(self, broker: RunningBroker) -> None:
        self.broker = broker
        self._path = broker.log_path.parent / "nats.conf"

    def change(self, old: str, new: str) -> None:
        """Change the configuration for the next start."""
        text = self._path.read_text()
        assert old in text
        self._path.write_text(text.replace(old, new))

    async def reload(self, old: str, new: str) -> None:
        """Change the configuration of the running server and wait until it is reloaded."""
        self.change(old, new)
        reloads = self._reloads()
        os.kill(self.broker.pid, signal.SIGHUP)
        await until(lambda: self._reloads() > reloads, within=10)

    def _reloads(self) -> int:
        return self.broker.log_path.read_text().count("Reloaded server configuration")
