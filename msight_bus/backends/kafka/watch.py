"""Noticing that Kafka is away: aiokafka retries in silence, and a frozen broker keeps its connections open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msight_bus.backends.deadlines import loop_timeout
from msight_bus.backends.kafka.errors import translate
from msight_bus.errors import AuthenticationError, BusError
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
    """Ask the cluster for a sign of life every ``ping_interval``, and report when answers stop and come again.

    ``probe`` opens a connection and tells why it cannot, which the client hides; a refusal ends the watch.
    """

    def tell(event: BusEvent) -> None:
        try:
            report(event)
        except Exception:
            logger.exception("The on_event callback has failed at %r.", event)

    failures = 0
    while True:
        await asyncio.sleep(limits.ping_interval if not failures else limits.reconnect_max)
        try:
            async with loop_timeout(limits.pong_timeout):
                await ask()
        except Exception as error:  # also what the client stumbles over when a peer talks nonsense
            failures += 1
            if failures == 1:
                reason = str(translate(error, "connect"))
                logger.warning("Kafka does not answer, reconnecting: %s", reason)
                tell(Disconnected(reason))
            try:
                async with loop_timeout(limits.pong_timeout):
                    await probe()
            except AuthenticationError as refusal:
                logger.error("Not reconnecting: %s", refusal)  # noqa: TRY400 - the one who waits raises it
                on_refused(refusal)
                return
            except (BusError, TimeoutError):
                pass  # it is away, as was seen
            except Exception:
                logger.exception("Probing Kafka has failed.")
        else:
            if failures:
                logger.warning("Kafka answers again after %d attempts.", failures)
                tell(Reconnected(failures))
            failures = 0
