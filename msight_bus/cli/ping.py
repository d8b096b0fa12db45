"""``msight-bus ping``: the round trip of a message through the broker, and of the broker's own PING."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable
from time import perf_counter
from typing import Annotated

import typer

from msight_bus.bus import Bus, connect
from msight_bus.cli.exit_status import FAILED, exit_status
from msight_bus.cli.observing import SILENT, BackendOption, JsonOption, Output, settings_of
from msight_bus.errors import ConnectionLostError
from msight_bus.queue_policy import QueuePolicy
from msight_bus.runtime import run
from msight_bus.subscription import Subscription
from msight_bus.topics import PING_TOPIC

EXAMPLES = """
Examples:

- `msight-bus ping`: one round trip a second, until Ctrl-C

- `msight-bus ping -c 20 --interval 0.05 --json`: 20 round trips; the last line has the quantiles in milliseconds
"""


class Pings:
    """The round trips of one run, in milliseconds; ``None`` without an answer.

    Attributes:
        messages, pings: round trips of messages, and of the broker's own PING.
    """

    def __init__(self, within: float, *, as_json: bool) -> None:
        """
        Args:
            within: seconds to wait for an answer.
            as_json: whether to print JSON.
        """
        self.messages: list[float | None] = []
        self.pings: list[float | None] = []
        self._within = within
        self._as_json = as_json
        self._out = Output()

    async def once(self, bus: Bus, answers: Subscription) -> None:
        """Measure one PING and one message, and print both.

        The first answer after a pause takes longer, because processes wake up. Therefore a PING before both is not measured, and
        which of the two is sent first alternates.
        """
        backend = bus.core.backend
        await self._timed(backend.ping())
        if len(self.messages) % 2:
            message, ping = await self._timed(_round_trip(bus, answers)), await self._timed(backend.ping())
        else:
            ping, message = await self._timed(backend.ping()), await self._timed(_round_trip(bus, answers))
        self.pings.append(ping)
        self.messages.append(message)
        self._say(
            f"{len(self.messages)}: message {_text(message)}, PING of the broker {_text(ping)}",
            {"number": len(self.messages), "message_ms": message, "ping_ms": ping},
        )

    async def _timed(self, answer: Awaitable[None]) -> float | None:
        begun = perf_counter()
        try:
            async with asyncio.timeout(self._within):
                await answer
        except (TimeoutError, ConnectionLostError):
            return None
        return (perf_counter() - begun) * 1e3

    def summarize(self) -> None:
        """Print the loss and the quantiles."""
        sent, lost = len(self.messages), self.messages.count(None)
        m50, m99, p50, p99 = (_quantile(of, at) for of in (self.messages, self.pings) for at in (0.5, 0.99))
        difference = None if m50 is None or p50 is None else m50 - p50
        quantiles = {"message_p50_ms": m50, "message_p99_ms": m99, "ping_p50_ms": p50, "ping_p99_ms": p99}
        self._say(
            f"{sent:,} sent, {lost:,} lost ({lost / max(1, sent):.1%})\n"
            f"message: p50 {_text(m50)}, p99 {_text(m99)}\n"
            f"PING of the broker: p50 {_text(p50)}, p99 {_text(p99)}\n"
            f"difference of p50, the bus and the event loop: {_text(difference)}"
            f"{' (measurement noise)' if (difference or 0) < 0 else ''}",
            {"sent": sent, "lost": lost, **quantiles, "difference_p50_ms": difference},
        )

    def _say(self, text: str, fields: dict[str, float | None]) -> None:
        self._out.print(json.dumps(fields) if self._as_json else text, markup=False, soft_wrap=True)


async def _round_trip(bus: Bus, answers: Subscription) -> None:
    payload = secrets.token_bytes(16)
    await bus.core.publish(PING_TOPIC, payload)
    async for message in answers:
        if message.payload == payload:
            return


def _quantile(values: list[float | None], at: float) -> float | None:
    known = sorted([value for value in values if value is not None])
    return known[min(len(known) - 1, int(at * len(known)))] if known else None


def _text(milliseconds: float | None) -> str:
    return "no answer" if milliseconds is None else f"{milliseconds:,.3f} ms"


def ping(
    count: Annotated[int | None, typer.Option("-c", "--count", min=1, help="End after this many round trips.")] = None,
    interval: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds between two round trips.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.01, max=3600, help="Seconds until a message counts as lost.")] = 1.0,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Measure the round trip of a message.

    The command publishes a message, receives it, and measures the time between. Each round trip also measures one PING of the
    broker (on Kafka, a metadata request). Which of the two is sent first alternates, after one unmeasured PING. The difference is
    the time of the bus and the event loop, and on Kafka of the log; a negative one is measurement noise. The messages use the
    reserved topic `_msight.ping`, which is created on Kafka. The exit status is 1 if a message was lost.
    """
    with exit_status():
        settings, pings = settings_of(backend, SILENT), Pings(timeout, as_json=json_lines)

        async def measure() -> None:
            async with (
                connect(settings) as bus,
                bus.core.subscribe((PING_TOPIC,), queue=QueuePolicy.drop_oldest()) as answers,
            ):
                await bus.core.publish(PING_TOPIC, b"")  # opens the publisher before the first measurement
                try:
                    while count is None or len(pings.messages) < count:
                        await pings.once(bus, answers)
                        await asyncio.sleep(interval if len(pings.messages) != count else 0)
                finally:
                    pings.summarize()
                await bus.core.backend.ping()

        run(measure())
        if None in pings.messages:
            raise typer.Exit(FAILED)
