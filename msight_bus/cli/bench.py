"""``msight-bus bench``: measure latency and throughput of the bus on the user's broker."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import msight_bus
from msight_bus.bench.figures import SHOWN, Figures, is_disturbed
from msight_bus.bench.jobs import STAMP, VoidError
from msight_bus.bench.machine import describe, in_words, versions
from msight_bus.bench.runner import Runner
from msight_bus.bench.scenarios import TOPICS, latency, rate_for, throughput
from msight_bus.bench.workers import WorkerError
from msight_bus.cli.exit_status import FAILED, exit_status
from msight_bus.cli.observing import BackendOption, settings_of
from msight_bus.cli.result_file import json_file
from msight_bus.cli.tables import Column, print_table
from msight_bus.errors import ConfigError, MessageTooLargeError
from msight_bus.settings import BusSettings

EXAMPLES = """
Examples:

- `msight-bus bench`: 128 B, 128 KiB and 1 MB on the configured broker; takes half a minute

- `msight-bus bench --payload 200KB --rate 30 --seconds 20`: frames of a camera

- `msight-bus bench --payload 1KiB --json - | jq .payloads[0].latency.p99`
"""

FORMAT = 2
_MOST_BYTES = 1 << 30
_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 10**6, "KIB": 1 << 10, "MIB": 1 << 20}

_COLUMNS = (
    Column("payload", left=True),
    Column("latency\nat /s", 4),
    Column("p50\nus"),
    Column("p90\nus", 6),
    Column("p99\nus"),
    Column("p99.9\nus", 5),
    Column("max\nus", 3),
    Column("slip\nus", 2),
    Column("through-\nput, /s"),
    Column("MB/s"),
    Column("publisher\nCPU us", 7),
    Column("subscriber\nCPU us", 8),
    Column("peak\nMB", 9),
)
_LATE = "* slip is above a tenth of the latency: this machine is too busy for a latency measurement."


class Loop(StrEnum):
    """Event loops to measure on."""

    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


def _size(text: str) -> int:
    """Parse a size such as ``128B``, ``200KB`` or ``1MiB``."""
    match = re.fullmatch(r"([0-9]{1,10})([A-Z]*)", text.strip().upper())
    size = int(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if not STAMP.size <= size <= _MOST_BYTES:
        raise typer.BadParameter(
            f"{text!r} is not a size from {STAMP.size}B to 1024MiB in B, KB, MB, KiB or MiB; for example 128B,200KB,1MiB."
        )
    return size


def _payloads(text: str) -> str:
    for part in text.split(","):
        _size(part)
    return text


def bench(  # noqa: PLR0917 - the options of the command
    payload: Annotated[
        str, typer.Option(callback=_payloads, help="Payload sizes, separated by commas, in B, KB, MB, KiB or MiB.")
    ] = "128B,128KiB,1MB",
    rate: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=1e6,
            help="Messages a second of the latency measurement; unset: 1,000, at most 20 MB a second.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.2, max=86400, help="Seconds of each measurement, after its warm-up.")
    ] = 3,
    loop: Annotated[Loop, typer.Option(help="Event loop of publisher and subscriber.")] = Loop.UVLOOP,
    backend: BackendOption = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="File for all figures, the machine and the versions; - is stdout.")
    ] = None,
) -> None:
    """Measure latency and throughput of the bus on your own broker.

    A publisher and a subscriber run in two processes, on the broker that the `MSIGHT_` variables configure. They use new topics
    that begin with `msight-bench.` and are not deleted on Kafka. A run that loses a message has no figures.

    Latency is measured one way, at a fixed rate, from the intended send time of each message, even if an earlier message was
    delayed. *p99*: 99 of 100 messages arrived within this time. *slip*: delay of the sender. Throughput is the rate at which
    one subscriber receives from one publisher, with a few megabytes in flight. Times are in microseconds (us); 1 MB is a
    million bytes. Figures of different machines are not comparable.
    """
    err = Console(stderr=True, highlight=False)
    with exit_status(), json_file(json_path) as write:
        chosen = settings_of(backend, {}).backend
        env = {name: value for name, value in os.environ.items() if name.startswith("MSIGHT_")}
        env["MSIGHT_PUBSUB_BACKEND"] = chosen
        sizes = [text.strip() for text in payload.split(",")]
        address = asyncio.run(_reach(BusSettings(environ=env), max(sizes, key=_size)))
        result: dict[str, Any] = {
            "format": FORMAT,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"msight-bus {' '.join(sys.argv[1:])}",
            "machine": describe(),
            "versions": versions(),
            "backend": chosen,
            "event_loop": loop.value,
        }
        err.print(f"{address}; {in_words(result['machine'])}", markup=False, soft_wrap=True)
        with Runner(env) as runner:
            result["payloads"] = [_measure(runner, text, err, rate=rate, seconds=seconds, loop=loop) for text in sizes]
        write(result)
        _show(result["payloads"], err if json_path == Path("-") else Console(highlight=False))
        if any(row["void"] for row in result["payloads"]):
            raise typer.Exit(FAILED)


async def _reach(settings: BusSettings, largest: str) -> str:
    """Publish the largest payload once, to report a broker that does not answer or accept it before the measurement.

    Raises:
        BusError: the broker cannot be reached, or does not accept the payload.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each measuring process shows them
        async with msight_bus.connect(settings) as bus:
            try:
                async with bus.publisher(f"{TOPICS}size") as publisher:
                    await publisher.send(bytes(_size(largest)))
            except MessageTooLargeError as error:
                raise ConfigError(f"--payload {largest} cannot be published. {error}") from error
            return settings.address


def _measure(
    runner: Runner, text: str, err: Console, *, rate: float | None, seconds: float, loop: Loop
) -> dict[str, Any]:
    """Measure latency and throughput of one payload size; record the reason of a void run."""
    size = _size(text)
    row: dict[str, Any] = {"payload": text, "size": size, "rate": rate or rate_for(size), "void": []}
    measurements: dict[str, Callable[[], Figures]] = {
        "latency": lambda: latency(runner, size, row["rate"], seconds, loop.value),
        "throughput": lambda: throughput(runner, size, seconds, loop.value),
    }
    for name, measure in measurements.items():
        err.print(f"{text}: {name}, {seconds:g} s after a warm-up", markup=False)
        try:
            row[name] = measure()
        except (VoidError, WorkerError) as error:
            row[name] = None
            row["void"].append(f"{name}: {str(error).strip().splitlines()[-1]}")
    return row


def _show(rows: list[dict[str, Any]], out: Console) -> None:
    print_table(_COLUMNS, [list(_cells(row)) for row in rows], out)
    if any(row["latency"] and is_disturbed(row["latency"]) for row in rows):
        out.print(_LATE, markup=False, soft_wrap=True)
    for row in rows:
        for why in row["void"]:
            out.print(f"No result: {row['payload']}, {why}", markup=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> Iterator[str]:
    late, fast = row["latency"], row["throughput"]
    yield row["payload"] + (" *" if late and is_disturbed(late) else "")
    yield f"{row['rate']:,g}"
    for name in (*SHOWN, "slip_p50"):
        yield f"{late[name]:,.0f}" if late else "-"
    if not fast:
        yield from "-----"
        return
    yield f"{fast['rate']:,.0f}"
    yield f"{fast['bytes_rate'] / 1e6:,.1f}"
    yield f"{fast['publisher_cpu_us']:,.2f}"
    yield f"{fast['cpu_us']:,.2f}"
    yield f"{max(fast['peak_bytes'], fast['publisher_peak_bytes']) / 1e6:,.0f}"
