"""``msight-bus hz`` and ``msight-bus bw``: rates and bandwidth of topics."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from msight_bus.bus import connect
from msight_bus.cli.exit_status import FAILED, exit_status
from msight_bus.cli.observing import (
    READING,
    BackendOption,
    CountOption,
    JsonOption,
    Observation,
    SecondsOption,
    TopicsArgument,
    entries_of,
    note,
    settings_of,
)
from msight_bus.cli.tables import Cells, Column, table_lines
from msight_bus.cli.topic_rates import Arrivals, TopicRates
from msight_bus.runtime import run

HZ_EXAMPLES = """
Examples:

- `msight-bus hz site.cam_ne`: messages a second, jitter and losses of a topic, until Ctrl-C

- `msight-bus hz 'site.*' --seconds 3 --json`: for a program; the last line of each topic is of the whole time
"""
BW_EXAMPLES = """
Examples:

- `msight-bus bw site.cam_ne site.cam_sw`: MB a second and sizes of two topics, until Ctrl-C

- `msight-bus bw '>' --count 100`: of all topics, over 100 messages
"""

MOST_TOPICS = 1000
_TOPIC = Column("topic", folds_at=8, left=True)
_COLUMNS = {  # name of the figure, decimal places, column of hz, column of bw
    "rate": (2, Column("msg/s"), None),
    "megabytes_rate": (3, None, Column("MB/s")),
    "jitter_ms": (1, Column("jitter\nms", 2), None),
    "longest_ms": (1, Column("longest\nms", 3), None),
    "mean_bytes": (0, None, Column("mean\nB", 1)),
    "largest_bytes": (0, None, Column("largest\nB", 2)),
    "messages": (0, Column("messages", 4), Column("messages", 4)),
    "missing": (0, Column("missing", 1), Column("missing", 3)),
}
WindowOption = Annotated[int, typer.Option(min=1, max=3600, help="Seconds over which rates are measured.")]


def figures(arrivals: Arrivals, missing: int | None) -> dict[str, float | None]:
    """Return the figures of a topic; ``None`` where a figure is not known."""
    rate, jitter, count = arrivals.rate(time.time()), arrivals.jitter, arrivals.count
    return {
        "rate": rate,
        "megabytes_rate": None if rate is None else rate * arrivals.bytes / max(1, count) / 1e6,
        "jitter_ms": None if jitter is None else jitter * 1e3,
        "longest_ms": None if jitter is None else arrivals.longest * 1e3,
        "mean_bytes": arrivals.bytes / count if count else None,
        "largest_bytes": arrivals.largest,
        "messages": count,
        "missing": missing,
    }


def number(value: float | None, digits: int) -> str:
    """Return a number for a table; ``?`` where it is not known."""
    return "?" if value is None else f"{value:,.{digits}f}"


@dataclass(frozen=True)
class Display:
    """A live table on a terminal, else a line a second and topic.

    Attributes:
        chosen: decimal places and column of each figure that is shown.
        live: the live table; ``None`` without a terminal.
        as_json: whether the lines are JSON, with all figures.
    """

    chosen: Mapping[str, tuple[int, Column]]
    live: Live | None
    as_json: bool

    def show(self, rates: TopicRates, observation: Observation, *, total: bool) -> None:
        """Show the figures of the window or of the whole time."""
        counters = observation.counters
        rows = {
            topic: figures(arrivals, counters[topic].missing if topic in counters else 0)
            for topic, arrivals in sorted((rates.total() if total else rates.recent()).items())
        }
        if self.live is not None:
            self.live.update(self._table(rows, self.live.console, every=total), refresh=True)
            return
        out = Console(highlight=False)
        when = "total" if total else datetime.now().strftime("%H:%M:%S")
        for topic, row in rows.items():
            titles = [column.title.replace("\n", " ") for _, column in self.chosen.values()]
            cells = [f"{title} {cell}" for title, cell in zip(titles, self._cells(row), strict=True)]
            text = (
                json.dumps({"topic": topic, "total": total, **row})
                if self.as_json
                else "  ".join([when, topic, *cells])
            )
            out.print(Text(text), soft_wrap=True)

    def _cells(self, row: Mapping[str, float | None]) -> Cells:
        return [number(row[name], digits) for name, (digits, _) in self.chosen.items()]

    def _table(self, rows: Mapping[str, Mapping[str, float | None]], out: Console, *, every: bool) -> Group:
        cells = [[topic, *self._cells(row)] for topic, row in rows.items()]
        shown = cells if every else cells[: max(1, out.height - 5)]
        lines = table_lines([_TOPIC, *(column for _, column in self.chosen.values())], shown, out.width)
        more = len(cells) - len(shown)
        return Group(*lines, *([Text(f"… and {more:,} more", style="dim")] if more else []))


def hz(  # noqa: PLR0917 - the options of the command
    topics: TopicsArgument,
    window: WindowOption = 5,
    count: CountOption = None,
    seconds: SecondsOption = None,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Measure messages a second, from the times of their arrival.

    *jitter*: standard deviation of the intervals; *longest*: the longest interval; *missing*: messages lost on the way, by the
    publishers' sequences or the log's offsets. `?`: not known. Without a terminal, a line a second and topic is printed, and
    at the end one of the whole time. The exit status is 1 without a message.
    """
    chosen = {name: (digits, column) for name, (digits, column, _) in _COLUMNS.items() if column}
    _measure(chosen, topics, window, count, seconds, backend, as_json=json_lines)


def bw(  # noqa: PLR0917 - the options of the command
    topics: TopicsArgument,
    window: WindowOption = 5,
    count: CountOption = None,
    seconds: SecondsOption = None,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Measure megabytes of payloads a second (1 MB is a million bytes), and the sizes of payloads.

    Headers and keys are not counted. Without a terminal, a line a second and topic is printed, and at the end one of the whole
    time. The exit status is 1 without a message.
    """
    chosen = {name: (digits, column) for name, (digits, _, column) in _COLUMNS.items() if column}
    _measure(chosen, topics, window, count, seconds, backend, as_json=json_lines)


def _measure(  # noqa: PLR0917 - the options of the commands
    chosen: Mapping[str, tuple[int, Column]],
    topics: Sequence[str],
    window: int,
    count: int | None,
    seconds: float | None,
    backend: str | None,
    *,
    as_json: bool,
) -> None:
    rates = TopicRates(window, MOST_TOPICS)

    async def measure(settings: Any, entries: tuple[str, ...], display: Display) -> None:
        async with connect(settings) as bus:
            observation = Observation(bus, rates.add, on_drop=rates.add)

            def each_second() -> None:
                rates.turn()
                display.show(rates, observation, total=False)

            def is_complete() -> bool:
                return count is not None and observation.received >= count

            try:
                await observation.run(entries, seconds=seconds, until=is_complete, each_second=each_second)
            finally:
                display.show(rates, observation, total=True)

    with exit_status(), ExitStack() as stack:
        entries, settings = entries_of(topics), settings_of(backend, READING)
        live = Live(console=Console(highlight=False), auto_refresh=False)
        on_terminal = live.console.is_terminal and not as_json
        display = Display(chosen, stack.enter_context(live) if on_terminal else None, as_json)
        run(measure(settings, entries, display))
        if rates.others:
            note(f"{rates.others:,} messages of other topics; at most {MOST_TOPICS:,} topics are measured.")
        if not rates.total():
            raise typer.Exit(FAILED)
