"""``msight-bus top``: a live table of the nodes and programs on a broker."""

from __future__ import annotations

import asyncio
import heapq
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from msight_bus.announcements import NodeInfo, NodeStatus, ProgramInfo
from msight_bus.bus import Bus, connect
from msight_bus.cli.completion import complete_nodes
from msight_bus.cli.exit_status import exit_status
from msight_bus.cli.observing import READING, BackendOption, note, overridden, registry_of
from msight_bus.cli.tables import Column, fit
from msight_bus.errors import ConnectionLostError, TopicError
from msight_bus.patterns import MAX_NAMED, TopicPattern, check_entries, is_pattern
from msight_bus.registry import Registry
from msight_bus.runtime import run
from msight_bus.settings import BusSettings
from msight_bus.topics import NODES_TOPIC

EXAMPLES = """
Examples:

- `msight-bus top`: all nodes and programs on the configured broker, until Ctrl-C

- `msight-bus top cam`: nodes and programs whose name, topics, host or status contain "cam"

- `msight-bus top --seconds 12`: end after every node and program has announced itself

- `msight-bus top | grep LOST`: print the table once, after 12 seconds
"""

_STYLES = {
    NodeStatus.REGISTERED: "yellow",
    NodeStatus.RUNNING: "",
    NodeStatus.STOPPED: "dim",
    NodeStatus.ERROR: "bold red",
    NodeStatus.LOST: "red",
}
_WORST_FIRST = (NodeStatus.ERROR, NodeStatus.LOST, NodeStatus.REGISTERED, NodeStatus.RUNNING, NodeStatus.STOPPED)
_COLUMNS = (
    Column("node", folds_at=8, left=True),
    Column("topic", 3, left=True),
    Column("msg/s", 2),
    Column("queued", 6),
    Column("lost", 1),
    Column("dropped", 4),
    Column("errors", 5),
    Column("ms p50\np99", 7),
    Column("status", left=True),
    Column("heard", 8),
)
_LATENCY = "ms p50 p99"
_LEGEND = "ms: from publishing an input to publishing its outputs; for a source: publishing only"
ALL_ANNOUNCED = 12.0
"""Seconds after which every node has sent a heartbeat, at the default interval."""

_NO_NODE = " (no node)"
_NO_NODES = "No announcement received yet; nodes and programs announce themselves every 10 s by default."
_LOOK_AGAIN = 1.0
"""Seconds between two looks for a Kafka topic that does not exist."""

Info = NodeInfo | ProgramInfo


@dataclass(frozen=True, slots=True)
class NodeTable:
    """A table of nodes and programs that fits the terminal, those with problems first.

    Attributes:
        infos: all nodes and programs.
        broker: address for the title.
        containing: show only those whose name, topics, host or status contain this text, ignoring case.
        height: maximum number of lines; ``None``: all. Only this many nodes and programs are rendered.
    """

    infos: list[Info]
    broker: str = ""
    containing: str = ""
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the lines; with ``soft_wrap`` and without a terminal, lines have no maximum width."""
        unbounded = options.no_wrap and not console.is_terminal
        yield from self._lines(None if unbounded else options.max_width)

    def _lines(self, width: int | None) -> Iterator[Text]:
        chosen = [info for info in self.infos if _contains(info, self.containing.lower())]
        programs = [isinstance(info, ProgramInfo) for info in self.infos].count(True)
        shown_programs = [isinstance(info, ProgramInfo) for info in chosen].count(True)
        title = f"Nodes{f' on {self.broker}' if self.broker else ''}"
        title += f" ({self._number(len(chosen) - shown_programs, len(self.infos) - programs)})"
        yield _line(f"{title}, programs ({self._number(shown_programs, programs)})" if programs else title, "italic")
        if not chosen:
            nothing = f"No node and no program contains {self.containing!r}." if self.infos else _NO_NODES
            for text in textwrap.wrap(nothing, width or len(nothing)):
                yield _line(text, "dim")
            return
        shown = heapq.nsmallest(len(chosen) if self.height is None else max(1, self.height), chosen, key=_severity)
        rows = [self._cells(info, ends) for ends in [_Topology(self.infos)] for info in shown]
        layout = fit(_COLUMNS, rows, width)
        heading = layout.heading()
        below = [] if _LATENCY in layout.hidden else textwrap.wrap(_LEGEND, width or len(_LEGEND))
        if layout.hidden:
            hidden = f"Not shown on {width} columns: {', '.join(layout.hidden)}."
            below += textwrap.wrap(hidden, width or len(hidden))
        for text in heading:
            yield _line(text, "bold")
        left = None if self.height is None else self.height - len(heading) - len(below) - 2
        drawn = 0
        for info, row in zip(shown, rows, strict=True):
            lines = layout.row(row)
            if left is not None:
                left -= len(lines)
                if left < 0 and drawn:
                    break
            for text in lines:
                yield _line(text, _STYLES[info.status])
            drawn += 1
        if drawn < len(chosen):
            yield _line(f"… and {len(chosen) - drawn:,} more", "dim")
        for text in below:
            yield _line(text, "dim")

    def _number(self, shown: int, number: int) -> str:
        return f"{shown} of {number}" if self.containing else f"{shown}"

    def _cells(self, info: Info, ends: _Topology) -> tuple[str, ...]:
        cells = _node_cells(info, ends) if isinstance(info, NodeInfo) else _program_cells(info, ends)
        return (
            f"{info.label}\n{info.host}\n{info.instance_id or info.instance[:8]}"
            if ends.names[info.label] > 1
            else info.label,
            *cells,
            info.status.value,
            f"{max(0.0, time.time() - info.last_heartbeat):.0f} s",
        )


def _node_cells(info: NodeInfo, ends: _Topology) -> tuple[str, ...]:
    metrics = info.metrics
    lines = [ends.line_in(info, entry) for entry in info.inputs]
    if info.more_inputs:
        lines.append(f"   and {info.more_inputs:,} more")
    rates = [_short(metrics.rate_in), *[""] * (len(lines) - 1)] if lines else []
    for topic in info.outputs:
        lines.append(ends.line_out(info, topic))
        rates.append(_short(metrics.rate_out))
    missing = "?" if metrics.missing is None else f"{metrics.missing:,}"
    receives = bool(info.inputs)
    return (
        "\n".join(lines),
        "\n".join(rates),
        f"{metrics.queued:,}" if receives else "",
        missing if receives else "",
        f"{metrics.dropped:,}",
        f"{metrics.errors + metrics.undecodable:,}",
        f"{_short(metrics.latency_p50_ms)}\n{_short(metrics.latency_p99_ms)}".rstrip(),
    )


def _program_cells(info: ProgramInfo, ends: _Topology) -> tuple[str, ...]:
    """Return the busiest topics of a program with their rates; it announces no other figures."""
    received = [(ends.line_in(info, one.topic), one.rate_in) for one in info.topics if one.subscribed]
    sent = [(ends.line_out(info, one.topic), one.rate_out) for one in info.topics if one.published]
    rows = received[:MAX_NAMED] + sent[:MAX_NAMED]
    if more := len(received) + len(sent) - len(rows) + info.more_topics:
        rows.append((f"   and {more:,} more", None))
    return "\n".join([line for line, _ in rows]), "\n".join([_short(rate) for _, rate in rows]), "", "", "", "", ""


class _Topology:
    """The topics that running nodes and programs publish and receive.

    Attributes:
        names: number of nodes and programs by name.
    """

    def __init__(self, infos: list[Info]) -> None:
        running = [info for info in infos if not info.ended and info.status is not NodeStatus.LOST]
        self._outputs = {topic for info in running for topic in info.outputs}
        self._inputs = {entry for info in running for entry in info.inputs}
        self._patterns = {entry: pattern for entry in self._inputs if (pattern := announced_pattern(entry)) is not None}
        self._more_outputs = any(isinstance(info, ProgramInfo) and info.more_topics for info in running)
        self._more = self._more_outputs or any(isinstance(info, NodeInfo) and info.more_inputs for info in running)
        self.names = Counter(info.label for info in infos)

    def line_in(self, info: Info, entry: str) -> str:
        """Return a line for an input; marked if nothing publishes there."""
        return f"<- {entry}{'' if info.ended or self._feed(entry) else _NO_NODE}"

    def line_out(self, info: Info, topic: str) -> str:
        """Return a line for an output; marked if nothing subscribes there."""
        return f"-> {topic}{'' if info.ended or self._receive(topic) else _NO_NODE}"

    def _feed(self, entry: str) -> bool:
        """Return whether a topic, or one that a pattern matches, is published; true if a program announces not all its topics."""
        pattern = announced_pattern(entry)
        named = entry in self._outputs or (pattern is not None and any(map(pattern.matches, self._outputs)))
        return named or self._more_outputs

    def _receive(self, topic: str) -> bool:
        """Return whether a topic can be received; true if a node or program announces not all its inputs."""
        return self._more or topic in self._inputs or any(one.matches(topic) for one in self._patterns.values())


def announced_pattern(entry: str) -> TopicPattern | None:
    """Parse an announced input as a pattern; return ``None`` if it is a topic, or neither."""
    with suppress(TopicError):
        if is_pattern(entry):
            return TopicPattern(check_entries(entry)[0], BusSettings.dead_letter_suffix)
    return None


def render(
    registry: Registry | None, broker: str = "", *, containing: str = "", height: int | None = None
) -> NodeTable:
    """Return a table of the nodes and programs in the registry, one row each, those with problems first.

    Rates are messages a second over the last heartbeat interval. ``(no node)`` marks an input topic on which no node and no
    program publishes, and an output topic to which none subscribes. A program is shown as ``name[process id]``.

    Args:
        registry: the nodes and programs; ``None``: there are none.
        broker, containing, height: see `NodeTable`.
    """
    return NodeTable([] if registry is None else [*registry, *registry.programs], broker, containing, height)


def _contains(info: Info, text: str) -> bool:
    shown = (info.label, info.host, *info.inputs, *info.outputs, info.status.value)
    return not text or any(text in part.lower() for part in shown)


def _severity(info: Info) -> tuple[bool, int, bool, str, str]:
    """Return the sort key: failed and lost first, then nodes with losses or errors, the other nodes, the programs."""
    harmed = False
    if isinstance(info, NodeInfo):
        metrics = info.metrics
        harmed = bool(metrics.missing or metrics.dropped or metrics.errors or metrics.undecodable)
    fine = not harmed and info.status not in {NodeStatus.ERROR, NodeStatus.LOST}
    return fine, _WORST_FIRST.index(info.status), isinstance(info, ProgramInfo), info.name, info.instance


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ignore")  # no markup: the text comes from other programs


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.{1 if value < 1000 else 0}f}"


async def watch(
    bus: Bus, refresh: float, stop: asyncio.Event, console: Console | None = None, containing: str = ""
) -> None:
    """Show a live table of ``bus.nodes()`` until ``stop`` is set; without a terminal, print the table once, at the end.

    If Kafka does not have the topic ``_msight.nodes``, wait for the topic.

    Args:
        bus: bus whose registry is shown.
        refresh: seconds between two updates of the table.
        stop: ends the display.
        console: output; default: stdout.
        containing: as for `render`.

    Raises:
        BusError: the subscription to the announcements failed.
    """
    out = console or Console(highlight=False)
    broker = bus.settings.address
    registry = await registry_of(bus)
    if registry is None:
        note(f"Topic {NODES_TOPIC} does not exist on {broker}. The first node that starts creates it; waiting.")
    while registry is None and not stop.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN):
                await stop.wait()
        with suppress(ConnectionLostError):
            registry = await registry_of(bus)
    if not out.is_terminal:
        await stop.wait()
        out.print(render(registry, broker, containing=containing), soft_wrap=True)
        return

    def table() -> NodeTable:
        return render(registry, broker, containing=containing, height=out.height - 1)

    with Live(table(), console=out, auto_refresh=False) as live:
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(refresh):
                    await stop.wait()
            live.update(table(), refresh=True)


def top(
    containing: Annotated[
        str,
        typer.Argument(
            help="Show only nodes and programs whose name, topics, host or status contain this text.",
            autocompletion=complete_nodes,
        ),
    ] = "",
    refresh: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two updates.")] = 1.0,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=86400 * 365,
            help="End after this many seconds; unset: at Ctrl-C, without a terminal after 12 s.",
        ),
    ] = None,
    backend: BackendOption = None,
) -> None:
    """Show nodes and programs live: rates, losses, errors, status.

    The columns are topics, rates, queue, losses, drops, errors, latency, status, and the age of the last heartbeat. Failed and
    lost nodes are listed first, then nodes with losses or errors. A program, a bus that publishes or subscribes outside of nodes,
    is shown as `name[process id]`, with its busiest topics. The command creates no topic.
    """
    if seconds is None and not Console().is_terminal:
        seconds = ALL_ANNOUNCED
    with exit_status():
        run(_top(containing, refresh, seconds, backend))


async def _top(containing: str, refresh: float, seconds: float | None, backend: str | None) -> None:
    async with connect(overridden(backend, READING)) as bus:
        stop = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(seconds, stop.set) if seconds is not None else None
        try:
            await watch(bus, refresh, stop, containing=containing)
            await bus.core.backend.ping()
        finally:
            if timer is not None:
                timer.cancel()
