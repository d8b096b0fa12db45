"""``msight-bus ping``: the round trip of a message through the broker, beside the broker's own PING."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console

from msight_bus.bus import Bus, connect
from msight_bus.cli.exit_status import FAILED, exit_status
from msight_bus.cli.observing import BackendOption, JsonOption, settings_of
from msight_bus.cli.rates import number
from msight_bus.errors import ConnectionLostError
from msight_bus.queue_policy import QueuePolicy
from msight_bus.runtime import run
from msight_bus.settings import BusSettings
from msight_bus.subscription import Subscription
from msight_bus.topics import PING_TOPIC

EXAMPLES = """
Examples:

- `msight-bus ping`: one round trip a second, until Ctrl-C

- `msight-bus ping -c 20 --interval 0.05 --json`: 20 round trips; the last line has the quantiles in milliseconds
"""


class Pings:
    """The round trips of one run, in milliseconds; ``None`` without an answer."""

    def __init__(self, within: float, *, as_json: bool) -> None:
        """``within``: seconds to wait for an answer; ``as_json`` prints JSON."""
        self.messages: list[float | None] = []
        self.pings: list[float | None] = []
        self._within = within
        self._as_json = as_json
        self._out = Console(highlight=False, soft_wrap=True)
        self._run = secrets.token_bytes(8)

    async def once(self, bus: Bus, answers: Subscription) -> None:
        """Measure one PING and one message, and print both."""
        self.pings.append(await self._timed(bus.core.backend.ping()))
        self.messages.append(await self._timed(self._round_trip(bus, answers)))
        number_of, message, ping = len(self.messages), self.messages[-1], self.pings[-1]
        if self._as_json:
            self._out.out(json.dumps({"number": number_of, "message_ms": message, "ping_ms": ping}), highlight=False)
            return
        lost = f"no answer within {self._within:g} s"
        texts = [lost if value is None else f"{value:.3f} ms" for value in (message, ping)]
        self._out.print(f"{number_of}: message {texts[0]}, PING of the broker {texts[1]}")

    async def _timed(self, answered: asyncio.Future[None] | object) -> float | None:
        begun = perf_counter()
        try:
            async with asyncio.timeout(self._within):
                await answered  # type: ignore[misc]
        except (TimeoutError, ConnectionLostError):
            return None
        return (perf_counter() - begun) * 1e3

    async def _round_trip(self, bus: Bus, answers: Subscription) -> None:
        payload = self._run + secrets.token_bytes(8)
        await bus.core.publish(PING_TOPIC, payload)
        async for message in answers:
            if message.payload == payload:
                return

    def summarize(self) -> None:
        """Print the loss and the quantiles."""
        sent, got, pings = len(self.messages), *map(_sorted, (self.messages, self.pings))
        figures = {
            "sent": sent,
            "received": len(got),
            **{f"message_{name}_ms": _quantile(got, at) for name, at in (("p50", 0.5), ("p99", 0.99))},
            **{f"ping_{name}_ms": _quantile(pings, at) for name, at in (("p50", 0.5), ("p99", 0.99))},
        }
        if self._as_json:
            self._out.out(json.dumps(figures), highlight=False)
            return
        lost = (sent - len(got)) / sent if sent else 0.0
        self._out.print(f"{sent:,} sent, {len(got):,} received, {lost:.1%} lost")
        for title, kind in (("message", "message"), ("PING of the broker", "ping")):
            p50, p99 = (number(figures[f"{kind}_{name}_ms"], 3) for name in ("p50", "p99"))
            self._out.print(f"{title}: p50 {p50} ms, p99 {p99} ms")
        if got and pings:
            difference = (_quantile(got, 0.5) or 0.0) - (_quantile(pings, 0.5) or 0.0)
            self._out.print(f"difference of the p50, bus and event loop: {difference:.3f} ms")


def _sorted(values: Sequence[float | None]) -> list[float]:
    return sorted([value for value in values if value is not None])


def _quantile(values: Sequence[float], at: float) -> float | None:
    return values[min(len(values) - 1, int(at * len(values)))] if values else None


def ping(
    count: Annotated[int | None, typer.Option("-c", "--count", min=1, help="End after this many round trips.")] = None,
    interval: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds between two round trips.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.01, max=3600, help="Seconds after which a message is lost.")] = 1.0,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Measure the round trip of a message: published, passed through the broker, and received by the same program.

    The broker's own PING (on Kafka, a metadata request) is measured before each message; the difference is the time of the bus
    and the event loop, and on Kafka of the log. The messages use the reserved topic `_msight.ping`, which Kafka creates. The
    exit status is 1 if a message was lost.
    """
    with exit_status():
        pings = Pings(timeout, as_json=json_lines)
        run(_ping(settings_of(backend, {}), pings, count, interval))
        if None in pings.messages:
            raise typer.Exit(FAILED)


async def _ping(settings: BusSettings, pings: Pings, count: int | None, interval: float) -> None:
    async with connect(settings) as bus, bus.core.subscribe((PING_TOPIC,), queue=QueuePolicy.drop_oldest()) as answers:
        await bus.core.publish(PING_TOPIC, b"")  # opens the publisher before the first measurement
        due = asyncio.get_running_loop().time()
        try:
            while count is None or len(pings.messages) < count:
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                await pings.once(bus, answers)
                due = max(due + interval, asyncio.get_running_loop().time())
        finally:
            pings.summarize()
