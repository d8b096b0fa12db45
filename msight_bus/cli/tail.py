"""``msight-bus tail``: messages as they arrive, decoded."""

from __future__ import annotations

import json
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from msight_bus.backends.base import Start
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
from msight_bus.cli.payload_text import as_json, as_text, decoded, matches
from msight_bus.errors import quoted
from msight_bus.message import Message
from msight_bus.runtime import run
from msight_bus.settings import BusSettings

EXAMPLES = """
Examples:

- `msight-bus tail site.cam_ne`: the messages of a topic, until Ctrl-C

- `msight-bus tail 'site.*' --filter sensor_name=ne --rate 2`: of all cameras, at most two a second of one sensor

- `msight-bus tail '>' --json --count 3`: the next three messages of any topic, for a program

- `msight-bus tail site.cam_ne --earliest --count 1 --backend kafka`: the oldest message that Kafka keeps
"""

_INDENT = "  "


class Tail:
    """Prints messages, at most ``rate`` a second, and counts the others.

    Attributes:
        shown: number of messages printed.
    """

    def __init__(
        self, settings: BusSettings, wanted: str | None, rate: float | None, count: int | None, as_lines: bool
    ) -> None:
        """``wanted`` is the filter, ``count`` the number of messages to print, ``as_lines`` prints JSON."""
        self.shown = 0
        self._limits = settings.limits
        self._wanted = wanted
        self._pause = 1 / rate if rate else 0.0
        self._count = count
        self._as_lines = as_lines
        self._out = Console(highlight=False)
        self._next_at = 0.0
        self._limited = 0
        self._reported: Counter[str] = Counter()

    @property
    def is_complete(self) -> bool:
        """Whether ``count`` messages were printed."""
        return self._count is not None and self.shown >= self._count

    def receive(self, messages: Sequence[Message]) -> None:
        """Print messages that match the filter."""
        for message in messages:
            if self.is_complete:
                return
            now = time.monotonic()
            if self._pause and now < self._next_at and self._wanted is None:
                self._limited += 1
                continue
            value = decoded(message, self._limits)
            if self._wanted is not None and not matches(message, value, self._wanted):
                continue
            if self._pause and now < self._next_at:
                self._limited += 1
                continue
            self._next_at = now + self._pause
            self.shown += 1
            if self._as_lines:
                self._out.out(json.dumps(_fields(message, value)), highlight=False)
            else:
                self._print(message, value)

    def _print(self, message: Message, value: Any) -> None:
        width = self._out.width if self._out.is_terminal else None
        most = 400 if width is None else 4 * (width - len(_INDENT))
        title, *rest = _heading(message)
        headers = ", ".join(f"{quoted(name)}: {quoted(text, 120)}" for name, text in message.headers.items())
        payload = "no value (tombstone)" if message.tombstone else as_text(value, most)
        lines = [Text(title, style="bold").append("  " + "  ".join(rest), style="not bold dim")]
        for text, style in ((headers, "cyan"), (payload, "")):
            folded = textwrap.wrap(text, width - len(_INDENT)) if width is not None else [text]
            lines += [Text(_INDENT + line, style=style) for line in folded if text]
        for line in lines:
            self._out.print(line, soft_wrap=True)

    def report(self, observation: Observation) -> None:
        """Print what was not shown since the last call."""
        counters = observation.counters
        counts = {
            "not shown (--rate)": self._limited,
            "dropped: they arrive faster than they can be printed": observation.dropped("drop_oldest"),
            "missing: lost on the way": sum([counter.missing or 0 for counter in counters.values()]),
            "on channels that are no valid topics": observation.dropped("invalid topic"),
        }
        for what, count in counts.items():
            if count > self._reported[what]:
                note(f"… {count - self._reported[what]:,} messages {what}.")
        self._reported.update(counts)


def _heading(message: Message) -> Iterator[str]:
    yield message.topic
    yield f"{len(message.payload):,} B"
    if message.session is not None:
        yield f"#{message.sequence} of {message.session:016x}"
    if message.position is not None:
        yield "partition {} offset {}".format(*message.position)
    if message.key is not None:
        yield f"key {quoted(message.key, 60)}"
    if message.published_at is not None:
        yield f"age {_duration(message.received_at - message.published_at)}"
    yield datetime.fromtimestamp(message.received_at).strftime("%H:%M:%S.%f")[:-3]


def _duration(seconds: float) -> str:
    for unit, factor in (("ms", 1e3), ("s", 1.0), ("min", 1 / 60), ("h", 1 / 3600)):
        if abs(seconds) * factor < 1000 or unit == "h":
            break
    return f"{seconds * factor:,.1f} {unit}"


def _fields(message: Message, value: Any) -> dict[str, Any]:
    partition, offset = message.position or (None, None)
    age = None if message.published_at is None else round((message.received_at - message.published_at) * 1e3, 3)
    return {
        "topic": message.topic,
        "size": len(message.payload),
        "key": message.key,
        "headers": dict(message.headers),
        "session": None if message.session is None else f"{message.session:016x}",
        "sequence": message.sequence,
        "partition": partition,
        "offset": offset,
        "published_at": message.published_at,
        "received_at": message.received_at,
        "age_ms": age,
        "tombstone": message.tombstone,
        "payload": as_json(value),
    }


def tail(  # noqa: PLR0917 - the options of the command
    topics: TopicsArgument,
    containing: Annotated[
        str | None,
        typer.Option("--filter", help="Show only messages that contain this text, or have this field: `name=value`."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Show at most this many messages a second; count the others.")
    ] = None,
    count: CountOption = None,
    seconds: SecondsOption = None,
    earliest: Annotated[
        bool, typer.Option("--earliest", help="Begin with the oldest message that the broker keeps (Kafka).")
    ] = False,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Show messages as they arrive: topic, size, sequence and session of the publisher, key, age, headers and payload.

    Values of `Data`, other MessagePack and JSON are shown as plain values, images as size and shape, other payloads as text or
    hexadecimal digits, shortened. No group is joined, no topic created and nothing committed. The age needs synchronized
    clocks. The exit status is 1 if `--seconds` end before `--count`, or without a message.
    """
    with exit_status():
        entries = entries_of(topics)
        settings = settings_of(backend, READING)
        view = Tail(settings, containing, rate, count, json_lines)
        run(_tail(settings, entries, view, seconds, "earliest" if earliest else "latest"))
        if not view.is_complete if count is not None else not view.shown:
            raise typer.Exit(FAILED)


async def _tail(
    settings: BusSettings, topics: tuple[str, ...], view: Tail, seconds: float | None, start: Start
) -> None:
    async with connect(settings) as bus:
        observation = Observation(bus, view.receive)

        def report() -> None:
            view.report(observation)

        try:
            await observation.run(
                topics, seconds=seconds, until=lambda: view.is_complete, each_second=report, start=start
            )
        finally:
            report()
