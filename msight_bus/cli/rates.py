"""``msight-bus hz`` and ``msight-bus bw``: rates and bandwidth of topics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from msight_bus.cli.exit_status import exit_status
from msight_bus.cli.observing import (
    READING,
    BackendOption,
    CountOption,
    JsonOption,
    Observation,
    Output,
    SecondsOption,
    TopicsArgument,
    note,
    settings_of,
    watch,
)
from msight_bus.cli.tables import Column, table_lines
from msight_bus.cli.topic_rates import Arrivals, TopicRates
from msight_bus.errors import counted
from msight_bus.patterns import matcher, named

MOST_TOPICS = 1000
Figures = Mapping[str, float | None]

_TOPIC = Column("topic", folds_at=8, left=True)
_HZ = {"rate": Column("msg/s"), "jitter_ms": Column("jitter\nms", 2), "longest_ms": Column("longest\nms", 3)}
_BW = {"megabytes_rate": Column("MB/s"), "mean_bytes": Column("mean\nB", 2), "largest_bytes": Column("largest\nB", 3)}
_BOTH = {"messages": Column("messages", 4), "missing": Column("missing", 1)}
_DIGITS = {"rate": 2, "megabytes_rate": 3, "jitter_ms": 1, "longest_ms": 1}


def cell(figures: Figures, name: str) -> str:
    """Return a figure for a table; ``?`` where it is not known."""
    value = figures[name]
    return "?" if value is None else f"{value:,.{_DIGITS.get(name, 0)}f}"


class Display:
    """Shows a live table on a terminal, else one line per topic each second. Topics and patterns without messages are listed."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        rates: TopicRates,
        entries: Sequence[str] = (),
        *,
        live: Live | None,
        as_json: bool,
    ) -> None:
        """
        Args:
            columns: column of each figure to show, by its name.
            rates: the figures.
            entries: topics and patterns of the command line.
            live: shows the table on a terminal; ``None``: print lines.
            as_json: whether to print all figures as JSON.
        """
        self._columns = columns
        self._rates = rates
        self._silent = list(entries)
        self._live = live
        self._as_json = as_json
        self._out = Output()

    def show(self, observation: Observation, total: bool) -> None:
        """Show the figures of the last window, or with ``total`` of the whole run."""
        if not total:
            self._rates.turn()
        counters, now = observation.counters, self._rates.clock()
        measured = self._rates.total() if total else self._rates.recent()
        suffix = observation.bus.settings.dead_letter_suffix
        heard = measured.keys() | {topic for topic, one in counters.items() if one.received}
        self._silent = [entry for entry in self._silent if not any(map(matcher((entry,), suffix), heard))]
        measured |= {entry: Arrivals() for entry in self._silent}
        rows: dict[str, Figures] = {
            topic: {**arrivals.figures(now), "missing": counters[topic].missing if topic in counters else 0}
            for topic, arrivals in sorted(measured.items())
        }
        if total and self._rates.others:
            note(
                f"{counted(self._rates.others, 'message')} of other topics; at most {MOST_TOPICS:,} topics are measured."
            )
        if self._live is not None:
            self._live.update(self._table(rows, every=total), refresh=True)
            return
        when = "total" if total else datetime.now().strftime("%H:%M:%S")
        for topic, row in rows.items():
            line = json.dumps({"topic": topic, "total": total, **row})
            if not self._as_json:
                cells = [f"{column.title} {cell(row, name)}" for name, column in self._columns.items()]
                cells = ["no message"] if topic in self._silent else cells
                line = "  ".join([when, topic, *cells]).replace("\n", " ")
            self._out.print(Text(line), soft_wrap=True)

    def _table(self, rows: Mapping[str, Figures], *, every: bool) -> Group:
        cells = [[topic, *(cell(row, name) for name in self._columns)] for topic, row in rows.items()]
        shown = cells if every else cells[: max(1, self._out.height - 5)]
        lines = table_lines([_TOPIC, *self._columns.values()], shown, self._out.width)
        more = len(cells) - len(shown)
        return Group(*lines, *([Text(f"… and {more:,} more", style="dim")] if more else []))


def _command(name: str, columns: Mapping[str, Column], help_text: str) -> Callable[..., None]:
    def command(  # noqa: PLR0917 - the options of the command
        topics: TopicsArgument,
        window: Annotated[int, typer.Option(min=1, max=3600, help="Seconds over which rates are measured.")] = 5,
        count: CountOption = None,
        seconds: SecondsOption = None,
        json_lines: JsonOption = False,
        backend: BackendOption = None,
    ) -> None:
        with exit_status(), ExitStack() as stack:
            settings = settings_of(backend, READING)
            live = None if json_lines else Live(console=Output(), auto_refresh=False)
            if live is not None:
                live = stack.enter_context(live) if live.console.is_terminal else None
            rates = TopicRates(window, MOST_TOPICS)
            display = Display(columns, rates, topics, live=live, as_json=json_lines)

            def is_complete(observation: Observation) -> bool:
                return count is not None and observation.received >= count

            observation = watch(
                settings,
                topics,
                seconds,
                lambda bus: Observation(bus, rates.add, display.show, is_complete, rates.add),
            )
            if not observation.received:
                note(f"No message on {named(topics)}.")
                raise typer.Exit(observation.failure)

    command.__name__, command.__doc__ = name, help_text
    return command


_AT_THE_END = """

    On a terminal, a live table is shown. Elsewhere, the command prints one line per topic every second, even for arguments on
    which no message has arrived, and at the end one line per topic for the whole run. `?`: unknown. The exit status is 1 if no
    message arrived."""

hz = _command(
    "hz",
    _HZ | _BOTH,
    """Measure messages a second, jitter and losses.

    *jitter*: standard deviation of the intervals between arrivals; *longest*: the longest interval; *missing*: messages that were
    lost, by the publishers' sequences or the log's offsets."""
    + _AT_THE_END,
)
HZ_EXAMPLES = """
Examples:

- `msight-bus hz site.cam_ne`: messages a second, jitter and losses of a topic, until Ctrl-C

- `msight-bus hz 'site.*' --seconds 3 --json`: for a script; the last line of each topic is for the whole run
"""

bw = _command(
    "bw",
    _BW | _BOTH,
    """Measure megabytes a second and sizes of payloads.

    1 MB is a million bytes. Headers and keys are not counted."""
    + _AT_THE_END,
)
BW_EXAMPLES = """
Examples:

- `msight-bus bw site.cam_ne site.cam_sw`: MB a second and sizes of two topics, until Ctrl-C

- `msight-bus bw '>' --count 100`: of all topics, over 100 messages
"""
