"""Log lines about failed fetches: an outage, which fails the fetches of all subscriptions, is logged in two lines."""

from __future__ import annotations

import asyncio
import logging

from msight_bus.patterns import named

logger = logging.getLogger("msight_bus")

_TOGETHER = 1.0
"""Seconds from the first failure within which failures of other subscriptions share the second line."""


class FetchFailures:
    """The failed fetches of the subscriptions of one bus."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # in order
        self._timer: asyncio.Handle | None = None

    def add(self, name: str, reason: str) -> None:
        """Log a WARNING for the first failure, and one for those that follow within a second.

        Args:
            name: topics of the subscription.
            reason: text of the error.
        """
        if self._timer is None:
            logger.warning("Fetch from %s failed; retrying: %s", name, reason)
            self._timer = asyncio.get_running_loop().call_later(_TOGETHER, self._write)
        self._names[name] = None

    def _write(self) -> None:
        self._timer = None
        _, *others = self._names
        self._names.clear()
        if others:
            logger.warning("Other subscriptions failed to fetch, too; retrying: %s", named(others))

    def close(self) -> None:
        """Log the failures that are not yet logged."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()
