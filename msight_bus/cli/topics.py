"""``msight-bus topics``: the announced topics, their publishers, subscribers and rates; with ``--observe`` all that arrives."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from msight_bus.announcements import MAX_PROGRAM_TOPICS, NodeInfo, NodeStatus, ProgramInfo
from msight_bus.bus import connect
from msight_bus.cli.completion import complete_topics
from msight_bus.cli.exit_status import exit_status
from msight_bus.cli.observing import (
    READING,
    BackendOption,
    JsonOption,
    Observation,
    note,
    registry_if_permitted,
    settings_of,
)
from msight_bus.cli.rates import MOST_TOPICS, Figures, cell
from msight_bus.cli.tables import Column, print_table
from msight_bus.cli.top import ALL_ANNOUNCED, announced_pattern
from msight_bus.cli.topic_rates import Arrivals, TopicRates
from msight_bus.errors import counted
from msight_bus.patterns import MAX_NAMED, check_entries, matcher
from msight_bus.runtime import run

EXAMPLES = """
Examples:

- `msight-bus topics`: the topics of all nodes and programs that announce themselves, after 12 seconds

- `msight-bus topics --observe 2`: the topics with traffic in the next two seconds, of any program

- `msight-bus topics 'site.*' --observe 1 --json`: one object for each topic that the pattern matches
"""

_COLUMNS = (
    Column("topic", folds_at=8, left=True),
    Column("published by", 3, left=True),
    Column("msg/s\nannounced", 4),
    Column("subscribed by", 2, left=True),
)
_LEAST_ROWS = 20
"""Maximum number of topics on a low terminal."""

_OTHER_LINES = 6
"""Lines of a terminal for headings, notes and the prompt."""

_OBSERVED = {"rate": Column("msg/s"), "megabytes_rate": Column("MB/s", 1), "mean_bytes": Column("mean\nB", 5)}


@dataclass
class Endpoints:
    """Publishers and subscribers of one topic, as announced.

    Attributes:
        publishers, subscribers: labels of nodes and programs.
        rate: messages a second that the publishers announce together.
    """

    publishers: set[str] = field(default_factory=set)
    subscribers: set[str] = field(default_factory=set)
    rate: float = 0.0


def endpoints_of(infos: Iterable[NodeInfo | ProgramInfo], observed: Iterable[str] = ()) -> dict[str, Endpoints]:
    """Return the publishers and subscribers of each topic of the running nodes and programs.

    A pattern stands for the announced and the ``observed`` topics that it matches; one that matches none has its own entry.
    """
    running = [info for info in infos if not info.ended and info.status is not NodeStatus.LOST]
    topics: dict[str, Endpoints] = {}
    for info in running:
        for topic, rate in _published(info):
            ends = topics.setdefault(topic, Endpoints())
            ends.publishers.add(info.label)
            ends.rate += rate
    inputs = [(entry, announced_pattern(entry), info.label) for info in running for entry in info.inputs]
    for entry, pattern, name in inputs:
        if pattern is None:
            topics.setdefault(entry, Endpoints()).subscribers.add(name)
    known = {*topics, *observed}
    for entry, pattern, name in inputs:
        if pattern is not None:
            for topic in [one for one in known if pattern.matches(one)] or [entry]:
                topics.setdefault(topic, Endpoints()).subscribers.add(name)
    return topics


def _published(info: NodeInfo | ProgramInfo) -> Iterable[tuple[str, float]]:
    """Return the topics on which a node or program publishes, with messages a second."""
    if isinstance(info, ProgramInfo):
        return [(one.topic, one.rate_out) for one in info.topics if one.published]
    return [(topic, info.metrics.rate_out) for topic in info.outputs]


def show(topics: dict[str, Endpoints], arrived: dict[str, Arrivals] | None, now: float, *, as_json: bool) -> None:
    """Print the topics, on a terminal those with the most messages a second.

    Args:
        topics: the topics with their publishers and subscribers.
        arrived: what was observed until ``now``; ``None`` without ``--observe``.
        now: seconds of the clock of `TopicRates`.
        as_json: print JSON.
    """
    rows: list[tuple[float, list[str]]] = []
    for topic in sorted({*topics, *(arrived or ())}):
        ends = topics.get(topic, Endpoints())
        publishers, subscribers = sorted(ends.publishers), sorted(ends.subscribers)
        seen: Figures | None = None if arrived is None else arrived.get(topic, Arrivals()).figures(now)
        if as_json:
            names = {"publishers": publishers, "subscribers": subscribers}
            typer.echo(json.dumps({"topic": topic, **names, "announced_rate": ends.rate, "observed": seen}))
        announced = f"{ends.rate:,.1f}" if publishers else ""
        observed = [] if seen is None else [cell(seen, name) for name in _OBSERVED]
        rate = ends.rate if seen is None else seen["rate"] or 0.0
        rows.append((rate, [topic, "\n".join(publishers), announced, "\n".join(subscribers), *observed]))
    if not as_json:
        _print(rows, _COLUMNS if arrived is None else (*_COLUMNS, *_OBSERVED.values()))
    hidden = "topics without traffic" if arrived is not None else "topics that no program announces (see --observe)"
    note(f"Topics: {len(rows):,}. Not shown: {hidden}, and subscribers that do not announce themselves.")


def _print(rows: list[tuple[float, list[str]]], columns: Sequence[Column]) -> None:
    """Print rows with their rates: all of them, or on a terminal the first ones by rate if they do not fit."""
    out = Console(highlight=False)
    shown, most = rows, max(_LEAST_ROWS, out.height - _OTHER_LINES)
    if out.is_terminal and len(rows) > most:
        shown = heapq.nlargest(most, rows, key=lambda row: row[0])
    print_table(columns, [row for _, row in shown], out)
    if more := len(rows) - len(shown):
        out.print(Text(f"… and {counted(more, 'more topic')}: name a pattern, or use --json", style="dim"))


def topics(
    topics: Annotated[
        list[str] | None,
        typer.Argument(help="Topics and patterns to list; unset: all.", autocompletion=complete_topics),
    ] = None,
    observe: Annotated[
        float | None,
        typer.Option(min=0.1, max=86400, help="Subscribe to the topics for this many seconds, and show what arrives."),
    ] = None,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """List topics, their publishers, subscribers and rates.

    Nodes and programs announce themselves every 10 seconds; the list is printed after 12 seconds. A program, a bus that publishes
    or subscribes outside of nodes, is shown as `name[process id]`. With `--observe`, the command subscribes to the topics, within
    bounded memory, and also lists those that no program announces. If not all topics fit a terminal, those with the most messages
    a second are shown. The command joins no group and creates no topic. Ctrl-C prints at once what was received. On NATS, while
    `--observe` runs, killed nodes and programs become LOST only after three missed announcements.
    """
    with exit_status():
        entries = check_entries(topics) if topics else ()
        settings, seconds = settings_of(backend, READING), ALL_ANNOUNCED if observe is None else observe
        is_chosen = matcher(entries, settings.dead_letter_suffix)
        rates = TopicRates(1, MOST_TOPICS)

        async def observe_all() -> None:
            async with connect(settings) as bus:
                observation = Observation(bus, rates.add, on_drop=rates.add)
                registry = await registry_if_permitted(bus)
                note(f"Listening for {seconds:g} s; Ctrl-C ends earlier.")
                try:
                    await observation.run([] if observe is None else entries or [">"], seconds)
                finally:
                    arrived = None if observe is None else rates.total()
                    nodes, programs = ([], ()) if registry is None else (list(registry), registry.programs)
                    ends = endpoints_of([*nodes, *programs], arrived or ())
                    chosen = {topic: one for topic, one in ends.items() if not entries or is_chosen(topic)}
                    show(chosen, arrived, rates.clock(), as_json=json_lines)
                    if more := rates.others + observation.dropped("invalid topic"):
                        note(
                            f"Not shown: {counted(more, 'message')} of more topics, or on channels that are not valid topics."
                        )
                    if unnamed := sum([info.more_inputs for info in nodes if not info.ended]):
                        note(
                            f"Not shown: {counted(unnamed, 'input')} of nodes; a node announces its first {MAX_NAMED}."
                        )
                    if unnamed := sum([info.more_topics for info in programs if not info.ended]):
                        busiest = f"a program announces its busiest {MAX_PROGRAM_TOPICS}"
                        note(f"Not shown: {counted(unnamed, 'topic')} of programs; {busiest}.")
                await bus.core.backend.ping()

        run(observe_all())
