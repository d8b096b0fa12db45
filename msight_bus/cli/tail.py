"""``msight-bus tail``: messages as they arrive, decoded."""

from __future__ import annotations

import json
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from msight_bus.backends.base import Start
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
from msight_bus.cli.payload_text import as_json, as_text, decoded, matches
from msight_bus.errors import UnsupportedError, counted, quoted
from msight_bus.message import Message
from msight_bus.patterns import named
from msight_bus.settings import Limits

EXAMPLES = """
Examples:

- `msight-bus tail site.cam_ne`: the messages of a topic, until Ctrl-C

- `msight-bus tail 'site.*' --filter sensor_name=ne --rate 2`: messages of sensor `ne` from all cameras, at most two a second

- `msight-bus tail '>' --json --count 3`: the next three messages of any topic, for a script

- `msight-bus tail site.cam_ne --earliest --count 1 --backend kafka`: the oldest message that Kafka keeps
"""

_INDENT = "  "
_UNITS = (("ms", 1e3), ("s", 1.0), ("min", 1 / 60), ("h", 1 / 3600))


class Tail:
    """Prints messages, at most ``rate`` a second, and counts those that it does not print.

    Attributes:
        shown: number of messages printed.
    """

    def __init__(self, limits: Limits, wanted: str | None, rate: float | None, *, as_json: bool) -> None:
        """
        Args:
            limits: limits of decoding.
            wanted: filter (`payload_text.matches`); ``None``: every message is shown.
            rate: maximum number of messages shown a second; ``None``: no maximum.
            as_json: whether to print JSON.
        """
        self.shown = 0
        self._limits = limits
        self._wanted = wanted
        self._pause = 1 / rate if rate else 0.0
        self._as_json = as_json
        self._out = Output()
        self._next_at = 0.0
        self._passed_over = 0
        self._noted: Counter[str] = Counter()

    def receive(self, message: Message) -> None:
        """Print a message that matches the filter."""
        now = time.monotonic()
        waits = now < self._next_at
        if waits and self._wanted is None:
            self._passed_over += 1
            return
        value = decoded(message, self._limits)
        if self._wanted is not None and not matches(message, value, self._wanted):
            return
        if waits:
            self._passed_over += 1
            return
        self._next_at = now + self._pause
        self.shown += 1
        if self._as_json:
            self._out.out(json.dumps(_fields(message, value)), highlight=False)
        else:
            self._print(message, value)

    def _print(self, message: Message, value: Any) -> None:
        width = self._out.width - len(_INDENT) if self._out.is_terminal else None
        headers = ", ".join(f"{quoted(name)}: {quoted(text, 120)}" for name, text in message.headers.items())
        payload = "no value (tombstone)" if message.tombstone else as_text(value, 4 * width if width else 400)
        heading = "  ".join([message.topic, *_details(message)])
        for text, style in ((heading, "bold"), (headers, "cyan"), (payload, "")):
            lines = textwrap.wrap(text, width) if width is not None else [text] if text else []
            for number, line in enumerate(lines):
                indent = "" if text is heading and not number else _INDENT
                self._out.print(Text(indent + line, style=style), soft_wrap=True)

    def report(self, observation: Observation, _: bool) -> None:
        """Print the number of messages that were not shown since the last call, by cause."""
        counts = {
            "not shown (--rate)": self._passed_over,
            "dropped: they arrive faster than they can be printed": observation.dropped("drop_oldest"),
            "missing: lost in transit": sum([counter.missing or 0 for counter in observation.counters.values()]),
            "on channels that are not valid topics": observation.dropped("invalid topic"),
        }
        for what, count in counts.items():
            if count > self._noted[what]:
                note(f"… {counted(count - self._noted[what], 'message')} {what}.")
        self._noted.update(Counter(counts) - self._noted)


def _details(message: Message) -> Iterator[str]:
    yield f"{len(message.payload):,} B"
    if message.session is not None:
        yield f"#{message.sequence} of {message.session:016x}"
    if message.position is not None:
        yield "partition {} offset {}".format(*message.position)
    if message.key is not None:
        yield f"key {quoted(message.key, 60)}"
    if message.published_at is not None:
        age = message.received_at - message.published_at
        unit, factor = next((one for one in _UNITS if abs(age) * one[1] < 1000), _UNITS[-1])
        yield f"age {age * factor:,.1f} {unit}"
    yield datetime.fromtimestamp(message.received_at).strftime("%H:%M:%S.%f")[:-3]


def _fields(message: Message, value: Any) -> dict[str, Any]:
    names = ("topic", "key", "sequence", "offset", "published_at", "received_at", "tombstone")
    return {
        **{name: getattr(message, name) for name in names},
        "partition": None if message.position is None else message.position[0],
        "session": None if message.session is None else f"{message.session:016x}",
        "headers": dict(message.headers),
        "size": len(message.payload),
        "payload": as_json(value),
        **({"encoding": "base64"} if isinstance(value, bytes) else {}),
    }


def tail(  # noqa: PLR0917 - the options of the command
    topics: TopicsArgument,
    containing: Annotated[
        str | None, typer.Option("--filter", help="Show only messages with this text, or this field: `name=value`.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Show at most this many messages a second; count the others.")
    ] = None,
    count: CountOption = None,
    seconds: SecondsOption = None,
    earliest: Annotated[
        bool, typer.Option("--earliest", help="Begin with the oldest message that Kafka keeps.")
    ] = False,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Print the messages of topics as they arrive.

    The first line of a message has its topic, size, sequence and session (`#SEQUENCE of SESSION`), key, age and time of arrival;
    headers and payload follow. `Data`, other MessagePack and JSON are shown as plain values, images as size and shape, other
    payloads as text or hexadecimal digits; long ones are shortened. With `--json`, nothing is shortened, and bytes are in base64:
    those inside plain values, and a payload that is neither plain values nor text, whose object has `"encoding": "base64"`. The
    age needs synchronized clocks. The command joins no group, creates no topic and commits nothing. The exit status is 1 if fewer
    than `--count` messages, or none, were shown.
    """
    with exit_status():
        settings = settings_of(backend, READING)
        view = Tail(settings.limits, containing, rate, as_json=json_lines)
        start: Start = "earliest" if earliest else "latest"
        try:
            observation = watch(
                settings,
                topics,
                seconds,
                lambda bus: Observation(
                    bus, view.receive, view.report, lambda _: count is not None and view.shown >= count, start=start
                ),
            )
        except UnsupportedError:
            text = f"{settings.backend} does not keep messages; use --backend kafka."
            raise typer.BadParameter(text, param_hint="--earliest") from None
        if view.shown < (count or 1):
            note(f"Shown: {view.shown:,} of {counted(observation.received, 'message')} received on {named(topics)}.")
            raise typer.Exit(observation.failure)
