"""``msight-bus pub``: publish text, a file, or lines of standard input."""

from __future__ import annotations

import asyncio
import json
import select
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from msight_bus.bus import connect
from msight_bus.cli.completion import complete_topics
from msight_bus.cli.exit_status import exit_status
from msight_bus.cli.observing import SILENT, BackendOption, JsonOption, note, settings_of
from msight_bus.data.tags import registered
from msight_bus.errors import BusError, PublishTimeoutError, counted, quoted
from msight_bus.pacing import paced
from msight_bus.payload import Payload
from msight_bus.runtime import bounded_shutdown, run
from msight_bus.topics import check_topic

EXAMPLES = """
Examples:

- `msight-bus pub site.text --text hello`: one message

- `seq 3 | msight-bus pub site.numbers --key ne`: a message for each line of standard input

- `msight-bus pub site.cam_ne --text x --rate 30 --count 60 --header lens=wide`: 60 messages, 30 a second

- `msight-bus pub site.packets --type BytesData --text '{"sensor_name": "lidar", "data": "AAEC"}'`: bytes are in base64
"""

_CHUNK = 64 * 1024
"""Bytes of standard input that are read at once."""

_CONFIRM_EVERY = 1.0
"""Seconds between two requests to confirm the messages sent so far."""

_CONFIRMED_WITHIN = 1.0
"""Seconds to wait for the confirmation of sent messages after Ctrl-C or an error."""


def _encoder(name: str | None) -> Callable[[bytes], Payload]:
    """Return a decoder of JSON to the registered class ``name``; without a name, bytes are returned unchanged."""
    if name is None:
        return lambda text: text
    known = {kind.__name__: kind for kind in registered().values()} | registered()
    if name not in known:
        names = ", ".join(sorted(kind.__name__ for kind in registered().values()))
        raise typer.BadParameter(f"{quoted(name)} is not a registered class; choose from {names}.", param_hint="--type")
    decoder = msgspec.json.Decoder(known[name])

    def encode(text: bytes) -> Payload:
        try:
            return decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise typer.BadParameter(
                f"{quoted(text, 60)} is not JSON of {name}: {error}.", param_hint="--type"
            ) from None

    return encode


def _read(file: Path, most: int) -> bytes:
    """Return the content of a file; not more is read of a larger one, or of a device."""
    try:
        with file.open("rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise typer.BadParameter(f"the file cannot be read: {error.strerror}.", param_hint="--file") from None
    if len(content) > most:
        raise typer.BadParameter(f"the file has more than {most:,} bytes.", param_hint="--file")
    return content


async def _repeated(text: bytes) -> AsyncGenerator[bytes]:
    while True:
        yield text


async def _lines(most: int) -> AsyncGenerator[bytes]:
    # A thread in a buffered read holds the lock of the buffer, for which the end of the interpreter does not wait: it aborts.
    source, line = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer), bytearray()

    def read() -> bytes:
        try:
            while (chunk := source.read(_CHUNK)) is None:  # non-blocking
                select.select([source], [], [])
            return bytes(chunk)
        except OSError as error:  # of a terminal, in the background
            raise BusError(f"Standard input cannot be read: {error.strerror}.") from error

    while chunk := await asyncio.to_thread(read):
        for number, part in enumerate(chunk.split(b"\n")):
            if number:
                yield bytes(line.rstrip(b"\r"))
                line.clear()
            line += part
            if len(line) > most + 1:
                raise typer.BadParameter(f"a line has more than {most:,} bytes.", param_hint="standard input")
    if line:
        yield bytes(line.rstrip(b"\r"))


def pub(  # noqa: PLR0917 - the options of the command
    topic: Annotated[str, typer.Argument(help="The topic to publish on.", autocompletion=complete_topics)],
    text: Annotated[str | None, typer.Option(help="The payload.")] = None,
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the payload.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Publish values of this class of `Data`, such as `BytesData`; the payload is JSON of its fields.",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Ordering key.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="A header, `name=value`; can be given several times.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Messages a second; repeats the payload until Ctrl-C.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of messages; unset: 1, or all lines.")] = None,
    json_lines: JsonOption = False,
    backend: BackendOption = None,
) -> None:
    """Publish text, a file, or lines of standard input.

    Without `--text` and `--file`, each line of standard input is a message. On Kafka, a topic that does not exist is created,
    unless `MSIGHT_KAFKA_CREATE_TOPICS=false`. The command prints the number of messages that the broker confirmed.
    """
    with exit_status():
        settings, encode = settings_of(backend, SILENT if rate is None else {}), _encoder(kind)
        if text is not None and file is not None:
            raise typer.BadParameter("give --text or --file, not both.")
        headers: dict[str, str] = {}
        for pair in header or []:
            name, equals, value = pair.partition("=")
            if not equals or name in headers:
                reason = "is given twice" if equals else "is not name=value"
                raise typer.BadParameter(f"{quoted(pair, 60)} {reason}; give each header once.", param_hint="--header")
            headers[name] = value
        check_topic(topic)
        most = settings.limits.max_message_bytes
        content = _read(file, most) if file else None if text is None else text.encode("utf-8", "surrogateescape")
        if content is not None:
            encode(content)  # a wrong payload is refused before the bus connects
        elif sys.stdin.isatty():
            note("Each line that you type is a message; Ctrl-D ends. `--text` publishes one message.")
        limit = 1 if content is not None and rate is None and count is None else count
        payloads = _lines(most) if content is None else _repeated(content)

        async def publish() -> None:
            sent, confirmed, ticks = 0, 0, aiter(paced(rate or 1.0))
            refused: list[tuple[BusError, int]] = []
            lost: list[BusError] = []

            async def confirm() -> None:
                nonlocal confirmed
                count = sent
                await publisher.flush()
                if not lost:
                    confirmed = count - sum([number for _, number in refused])

            async def confirm_regularly() -> None:
                while not lost:
                    await asyncio.sleep(_CONFIRM_EVERY)
                    try:
                        await confirm()
                    except PublishTimeoutError:  # disconnected; messages can still arrive
                        pass
                    except BusError as error:
                        lost.append(error)

            async with bounded_shutdown(), connect(settings) as bus, aclosing(payloads):
                try:
                    async with bus.publisher(topic) as publisher:
                        publisher.report_refusals(lambda error, number: refused.append((error, number)))
                        confirming = asyncio.create_task(confirm_regularly())
                        try:
                            async for payload in payloads:
                                if rate is not None:
                                    await anext(ticks)
                                await publisher.send(encode(payload), key, headers)
                                sent += 1
                                if refused or sent == limit:
                                    break
                        except BaseException:
                            with suppress(BusError, TimeoutError):
                                await asyncio.wait_for(confirm(), _CONFIRMED_WITHIN)
                            raise
                        finally:
                            confirming.cancel()
                            await asyncio.wait((confirming,))
                        await confirm()
                        for error in (*lost, *(one for one, _ in refused)):
                            raise error
                finally:
                    said = {"topic": topic, "sent": confirmed}
                    typer.echo(json.dumps(said) if json_lines else f"{counted(confirmed, 'message')} on {topic}")

        run(publish())
