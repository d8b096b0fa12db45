"""``msight-bus top``: every node on the broker, live."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from msight_bus.bus import Bus, connect
from msight_bus.errors import BusError
from msight_bus.registry import NodeInfo, NodeStatus, Registry
from msight_bus.runtime import run
from msight_bus.settings import BusSettings

EXAMPLES = """
Examples:

- `msight-bus top`: what runs on the broker that the environment chooses, until Ctrl-C

- `msight-bus top --seconds 12`: the same, for long enough to have heard of every node
"""

_STYLES = {
    NodeStatus.REGISTERED: "yellow",
    NodeStatus.RUNNING: "green",
    NodeStatus.STOPPED: "dim",
    NodeStatus.ERROR: "bold red",
    NodeStatus.LOST: "red",
}
_NUMBERS = ("msg/s", "queued", "lost", "dropped", "errors", "ms p50\np99")
_MEANING = "ms: since an input was published until its outputs were; of a source: the publishing alone"


def render(registry: Registry, broker: str = "") -> Table:
    """Return a table of the nodes as the registry knows them now, one row a node.

    Rates are messages a second over the node's last heartbeat interval. A topic that no other end of is known is marked: no
    node publishes an input, or subscribes to an output.

    Args:
        registry: the nodes.
        broker: for the title.
    """
    infos = list(registry)
    living = [info for info in infos if not info.ended and info.status is not NodeStatus.LOST]
    published = {info.publish_topic for info in living}
    subscribed = {info.subscribe_topic for info in living}
    names = Counter(info.name for info in infos)
    table = Table(
        title=Text(f"Nodes on {broker} ({len(infos)})" if broker else f"Nodes ({len(infos)})"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        pad_edge=False,
    )
    # Names may be broken where the terminal is narrow; a number without its end would be another number.
    table.add_column("node", overflow="fold", min_width=8)
    table.add_column("topic", overflow="fold", min_width=14)
    for title in _NUMBERS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True, min_width=7)
    table.add_column("heard", justify="right", no_wrap=True, min_width=5)
    for info in infos:
        table.add_row(*_row(info, published, subscribed, names[info.name] > 1))
    table.caption = _MEANING
    if not infos:
        table.caption = "None heard of yet; each one announces itself once a heartbeat interval (10 s by default)."
    return table


def _row(
    info: NodeInfo, published: set[str | None], subscribed: set[str | None], shares_name: bool
) -> tuple[Text | str, ...]:
    metrics = info.metrics
    topics = [
        (f"{arrow} {topic}" + ("" if topic in others or info.ended else " (no node)"), _short(rate))
        for arrow, topic, rate, others in (
            ("<-", info.subscribe_topic, metrics.rate_in, published),
            ("->", info.publish_topic, metrics.rate_out, subscribed),
        )
        if topic is not None
    ]
    missing = "?" if metrics.missing is None else f"{metrics.missing:,}"
    # Text, because what others have announced must not be read as markup.
    return (
        Text(f"{info.name}\n{info.host}\n{info.instance[:8]}" if shares_name else info.name),
        Text("\n".join(topic for topic, _ in topics)),
        "\n".join(rate for _, rate in topics),
        f"{metrics.queued:,}" if info.subscribe_topic is not None else "",
        missing if info.subscribe_topic is not None else "",
        f"{metrics.dropped:,}",
        f"{metrics.errors + metrics.undecodable:,}",
        f"{_short(metrics.latency_p50_ms)}\n{_short(metrics.latency_p99_ms)}".rstrip(),
        Text(info.status, style=_STYLES[info.status]),
        f"{max(0.0, time.time() - info.last_heartbeat):.0f} s",
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.{1 if value < 1000 else 0}f}"


async def watch(bus: Bus, refresh: float, stop: asyncio.Event, console: Console | None = None) -> None:
    """Show the live table of ``bus.nodes()`` until ``stop`` is set.

    Args:
        bus: where to listen.
        refresh: seconds between two drawings.
        stop: ends the watch.
        console: where to draw; stdout if not given.

    Raises:
        BusError: the announcements cannot be subscribed to.
    """
    registry = await bus.nodes()
    broker = bus.settings.address
    with Live(render(registry, broker), console=console, auto_refresh=False) as live:
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(refresh):
                    await stop.wait()
            live.update(render(registry, broker), refresh=True)


def top(
    refresh: Annotated[float, typer.Option(min=0.1, help="Seconds between two drawings.")] = 1.0,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="End after so many seconds; unset, at Ctrl-C.")] = None,
    backend: Annotated[str | None, typer.Option(help="redis, nats or kafka; unset, as in the environment.")] = None,
) -> None:
    """Show every node on the broker: rate, queue, losses, drops, latency, status, age of its heartbeat."""
    try:
        run(_top(refresh, seconds, backend))
    except KeyboardInterrupt:
        return
    except BusError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


async def _top(refresh: float, seconds: float | None, backend: str | None) -> None:
    async with connect(BusSettings(backend=backend)) as bus:
        stop = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(seconds, stop.set) if seconds is not None else None
        try:
            await watch(bus, refresh, stop)
        finally:
            if timer is not None:
                timer.cancel()
