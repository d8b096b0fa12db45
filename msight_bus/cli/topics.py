"""``msight-bus topics``: the topics of nodes, their publishers, subscribers and rates; with ``--observe`` all that arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from msight_bus.bus import connect
from msight_bus.cli.exit_status import exit_status
from msight_bus.cli.observing import READING, BackendOption, JsonOption, Observation, note, settings_of
from msight_bus.cli.rates import MOST_TOPICS, figures, number
from msight_bus.cli.tables import Column, print_table
from msight_bus.cli.top import ALL_ANNOUNCED
from msight_bus.cli.topic_rates import TopicRates
from msight_bus.errors import TopicError
from msight_bus.registry import NodeInfo, NodeStatus
from msight_bus.runtime import run
from msight_bus.settings import BusSettings

EXAMPLES = """
Examples:

- `msight-bus topics`: the topics of all nodes, after 12 seconds

- `msight-bus topics --observe 2`: the topics with traffic in the next two seconds, of any program

- `msight-bus topics --observe 1 --json`: one object for each topic
"""

_COLUMNS = (
    Column("topic", folds_at=8, left=True),
    Column("published by", 3, left=True),
    Column("msg/s\nannounced", 4),
    Column("subscribed by", 2, left=True),
)
_OBSERVED = (Column("msg/s"), Column("MB/s", 1), Column("mean\nB", 5))
_NOT_SHOWN = "Not shown: subscribers that are no nodes, and "


class Ends:
    """The nodes at the ends of one topic.

    Attributes:
        publishers: names of the nodes that publish on the topic.
        subscribers: names of the nodes that subscribe to the topic.
        rate: messages a second that the publishers announce.
    """

    def __init__(self) -> None:
        self.publishers: set[str] = set()
        self.subscribers: set[str] = set()
        self.rate = 0.0


def ends_of(nodes: Iterator[NodeInfo]) -> dict[str, Ends]:
    """Return the ends of each topic of the nodes that run."""
    topics: dict[str, Ends] = {}
    for info in nodes:
        if info.ended or info.status is NodeStatus.LOST:
            continue
        if info.publish_topic is not None:
            ends = topics.setdefault(info.publish_topic, Ends())
            ends.publishers.add(info.name)
            ends.rate += info.metrics.rate_out
        if info.subscribe_topic is not None:
            topics.setdefault(info.subscribe_topic, Ends()).subscribers.add(info.name)
    return topics


def topics(
    observe: Annotated[
        float | None,
        typer.Option(min=0.1, max=86400, help="Subscribe to all topics for this many seconds, and show what arrives."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=86400, help="Seconds to listen to nodes; unset: 12, or as --observe.")
    ] = None,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """List the topics of the nodes on the broker: who publishes, who subscribes, and the announced rate.

    Nodes announce themselves every 10 seconds. `--observe` also subscribes to all topics (`>`), within bounded memory, and shows
    the topics of any program with traffic. No group is joined and no topic created. Ctrl-C shows what was received until then.
    """
    with exit_status():
        run(_topics(settings_of(backend, READING), observe, seconds or observe or ALL_ANNOUNCED, as_json=json_lines))


async def _topics(settings: BusSettings, observe: float | None, seconds: float, *, as_json: bool) -> None:
    rates = TopicRates(int(seconds) + 1, MOST_TOPICS)
    async with connect(settings) as bus:
        observation = Observation(bus, rates.add, on_drop=rates.add)
        try:
            nodes = await bus.nodes()
        except TopicError:  # on Kafka
            nodes = None
            note("No node has announced itself on this broker.")
        note(f"Listening for {seconds:g} s; Ctrl-C ends earlier.")
        try:
            await observation.run([] if observe is None else [">"], seconds=seconds)
        finally:
            _show(ends_of(iter(nodes or ())), None if observe is None else rates, observation, as_json=as_json)


def _show(ends: dict[str, Ends], rates: TopicRates | None, observation: Observation, *, as_json: bool) -> None:
    arrived = {} if rates is None else rates.total()
    rows = []
    for topic in sorted({*ends, *arrived}):
        end = ends.get(topic, Ends())
        row = [topic, "\n".join(sorted(end.publishers)), number(end.rate if end.publishers else None, 1)]
        row.append("\n".join(sorted(end.subscribers)))
        seen = figures(arrived[topic], None) if topic in arrived else None
        if as_json:
            nodes = {"publishers": sorted(end.publishers), "subscribers": sorted(end.subscribers)}
            typer.echo(json.dumps({"topic": topic, **nodes, "announced_rate": end.rate, "observed": seen}))
        elif rates is not None:
            names = ("rate", 1), ("megabytes_rate", 3), ("mean_bytes", 0)
            row += [number(seen[name], digits) if seen else "0" for name, digits in names]
        rows.append(row)
    if not as_json:
        print_table(_COLUMNS if rates is None else (*_COLUMNS, *_OBSERVED), rows, Console(highlight=False))
    traffic = "topics of other programs (see --observe)." if rates is None else "topics without traffic."
    note(f"{len(rows):,} topics. {_NOT_SHOWN}{traffic}")
    if invalid := observation.dropped("invalid topic"):
        note(f"{invalid:,} messages arrived on channels that are no valid topics.")
    if rates is not None and rates.others:
        note(f"{rates.others:,} messages of more topics arrived.")
