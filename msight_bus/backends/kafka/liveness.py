"""Detects that Kafka is down: aiokafka retries without an error, and a frozen broker keeps its connections open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.kafka.errors import translate
from msight_bus.errors import AuthenticationError, BusError, counted
from msight_bus.events import BusEvent, Disconnected, Reconnected
from msight_bus.settings import Limits

logger = logging.getLogger("msight_bus")


async def watch(
    ask: Callable[[], Awaitable[object]],
    probe: Callable[[], Awaitable[None]],
    limits: Limits,
    report: Callable[[BusEvent], None],
    on_refused: Callable[[AuthenticationError], None],
) -> None:
    """Ping the cluster every ``ping_interval`` seconds and report disconnects and reconnects, until refused or cancelled.

    Args:
        ask: sends a request; returns when a broker has responded.
        probe: opens a new connection; raises the reason if it cannot.
        limits: intervals and deadlines.
        report: called with each event.
        on_refused: called when ``probe`` raises a refusal.
    """
    failures = 0
    while True:
        await asyncio.sleep(limits.ping_interval if not failures else limits.reconnect_max)
        try:
            async with loop_timeout(limits.pong_timeout):
                await ask()
        except Exception as error:  # aiokafka raises anything if the peer sends invalid data
            failures += 1
            if failures == 1:
                reason = str(translate(error, "connect"))
                logger.warning("Disconnected from Kafka, reconnecting: %s", reason)
                report(Disconnected(reason))
            try:
                async with loop_timeout(limits.pong_timeout):
                    await probe()
            except AuthenticationError as refusal:
                logger.error("Not reconnecting: %s", refusal)  # noqa: TRY400 - the pending calls raise it
                on_refused(refusal)
                return
            except (BusError, TimeoutError):
                pass  # still down, as logged above
            except Exception:
                logger.exception("Probe of Kafka failed unexpectedly.")
        else:
            if failures:
                logger.warning("Reconnected to Kafka after %s.", counted(failures, "attempt"))
                report(Reconnected(failures))
            failures = 0
