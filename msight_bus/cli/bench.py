"""``msight-bus bench``: how fast the bus is on the broker that the environment chooses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from msight_bus.bench.figures import Figures
from msight_bus.bench.jobs import VoidError
from msight_bus.bench.machine import describe, in_words, versions
from msight_bus.bench.own_broker import fresh_topic, throughput, together
from msight_bus.bench.own_broker import latency as measure_latency
from msight_bus.bench.profiles import PROFILES, Stream
from msight_bus.bench.stage import Stage
from msight_bus.bench.worker import WorkerError
from msight_bus.errors import BusError
from msight_bus.settings import BusSettings

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

_BACKEND = typer.Option(help="redis, nats or kafka; unset, as in the environment.")
_JSON = typer.Option("--json", help="Write every figure, the machine and all versions to this file.")
_SECONDS = typer.Option(min=0.2, help="How long each run sends, after its warm-up.")
_PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")


@app.callback()
def bench() -> None:
    """Measure the bus on your own broker.

    A publisher and a subscriber run in two processes and use a topic of their own; the broker is the one that the
    `MSIGHT_` variables lead to (`msight-bus settings`). On Kafka the topics stay behind: they begin with
    `msight-bench.`. If a message is lost, the run is void and there is no figure.
    """


@app.command(
    epilog="""
Examples:

- `msight-bus bench latency`: 1 KiB at 1 000 messages a second

- `msight-bus bench latency --rate 30 --size 100000 --seconds 20`: like a camera
"""
)
def latency(  # noqa: PLR0917 - the options of the command
    rate: Annotated[float, typer.Option(min=1, help="Messages a second.")] = 1000,
    size: Annotated[int, typer.Option(min=16, help="Bytes of a message.")] = 1024,
    seconds: Annotated[float, _SECONDS] = 5,
    loop: Annotated[str, typer.Option(help="Event loop of both sides: uvloop or asyncio.")] = "uvloop",
    backend: Annotated[str | None, _BACKEND] = None,
    json_path: Annotated[Path | None, _JSON] = None,
) -> None:
    """One-way latency at a fixed rate.

    Each message has an intended time, and its latency begins then, even if the one before it was slow. *slip* is how
    late the sender itself was: if it is above a tenth of the latency, the machine is too busy for this measurement.
    """
    with _measuring(backend, json_path) as (env, say, results):
        stream = Stream(f"{size:,} B at {rate:,g}/s", rate, size)
        say(f"latency: {stream.name} for {seconds:g} s")
        results[stream.name] = measure_latency(env, stream, seconds, fresh_topic(), loop)
        _show_latencies(results)


@app.command(
    "throughput",
    epilog="""
Examples:

- `msight-bus bench throughput`: small, middle and large messages

- `msight-bus bench throughput --size 128 --loop asyncio`: one size, without uvloop
""",
)
def throughput_(
    size: Annotated[list[int] | None, typer.Option(min=1, help="Bytes of a message; may be repeated.")] = None,
    seconds: Annotated[float, _SECONDS] = 3,
    loop: Annotated[str, typer.Option(help="Event loop of both sides: uvloop or asyncio.")] = "uvloop",
    backend: Annotated[str | None, _BACKEND] = None,
    json_path: Annotated[Path | None, _JSON] = None,
) -> None:
    """As many messages as go from one publisher to one subscriber with nothing lost.

    The publisher waits when more than a few megabytes are on their way. The figure is what the subscriber has counted.
    """
    with _measuring(backend, json_path) as (env, say, results):
        with Stage(env) as stage:
            for number in size or (128, 16 * 1024, 128 * 1024, 1_000_000):
                say(f"throughput: {number:,} B for {seconds:g} s")
                results[f"{number:,} B"] = throughput(stage, number, seconds, fresh_topic(), loop)
        _show_rates(results)


@app.command(
    epilog="""
Examples:

- `msight-bus bench profiles`: each sensor alone, then all at the same time

- `msight-bus bench profiles camera lidar --seconds 30`: these two, one after the other
"""
)
def profiles(
    names: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(PROFILES)}; unset, all.")] = None,
    seconds: Annotated[float, _SECONDS] = 5,
    backend: Annotated[str | None, _BACKEND] = None,
    json_path: Annotated[Path | None, _JSON] = None,
) -> None:
    """One-way latency of sensors rather than of bare sizes.

    IMU: 200 Hz of 64 B. GNSS: 10 Hz of 200 B. Radar: 20 Hz of 4 KiB. Camera: 30 Hz of 100 KiB. LiDAR: 10 Hz of 1 MB.
    mix: all of them at the same time, each in processes of its own.
    """
    for name in names or ():
        if name not in PROFILES:
            raise typer.BadParameter(f"{name!r} is no profile; there are {', '.join(PROFILES)}.")
    with _measuring(backend, json_path) as (env, say, results):
        for name in names or list(PROFILES):
            streams = PROFILES[name]
            say(f"{name}: {', '.join(f'{s.rate:g} Hz of {s.size:,} B' for s in streams)} for {seconds:g} s")
            for stream, figures in together(env, streams, seconds, fresh_topic()).items():
                results[stream if len(streams) == 1 else f"{name}: {stream}"] = figures
        _show_latencies(results)


@contextmanager
def _measuring(
    backend: str | None, json_path: Path | None
) -> Iterator[tuple[dict[str, str], Callable[[str], None], dict[str, Any]]]:
    """The environment of the workers, a voice and a place for results; failures become exit status 1."""
    err = Console(stderr=True, highlight=False)
    try:
        chosen = BusSettings(backend=backend).backend
        if chosen == "memory":
            err.print(
                "The memory backend joins tasks of one process, and this measures between processes. Choose a broker: "
                "--backend redis, nats or kafka (`msight-bus up redis` starts one).",
                style="red",
            )
            raise typer.Exit(1)
        env = {name: value for name, value in os.environ.items() if name.startswith("MSIGHT_")}
        env["MSIGHT_PUBSUB_BACKEND"] = chosen
        machine = describe()
        err.print(f"{chosen}; {in_words(machine)}", markup=False)
        results: dict[str, Any] = {}
        yield env, lambda line: err.print(line, markup=False), results
    except (BusError, VoidError, WorkerError) as error:
        err.print(str(error).strip().splitlines()[-1], style="red", markup=False)
        raise typer.Exit(1) from error
    if json_path is not None:
        whole = {"backend": chosen, "machine": machine, "versions": versions(), "results": results}
        json_path.write_text(json.dumps(whole, indent=1) + "\n")
        err.print(f"written to {json_path}", markup=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _show_latencies(results: dict[str, Figures]) -> None:
    table = _table("one way, us", *_PERCENTILES, "slip p50", "slip p99", "messages")
    for name, figures in results.items():
        shown = [*(figures[column] for column in _PERCENTILES), figures["slip_p50"], figures["slip_p99"]]
        table.add_row(
            name + (" *" if figures["late"] else ""), *(f"{v:,.0f}" for v in shown), f"{figures['samples']:,.0f}"
        )
    out = Console(highlight=False)
    out.print(table)
    if any(figures["late"] for figures in results.values()):
        out.print("* The sender was late by more than a tenth of the latency: the machine is too busy to tell.")


def _show_rates(results: dict[str, dict[str, Figures]]) -> None:
    table = _table("", "msg/s", "MB/s", "publisher us", "subscriber us", "peak MB")
    for name, figures in results.items():
        took, sent = figures["subscriber"], figures["publisher"]
        peak = max(took["peak_bytes"], sent["peak_bytes"]) / 1e6
        row = (
            f"{took['rate']:,.0f}",
            f"{took['bytes_rate'] / 1e6:,.0f}",
            f"{sent['cpu_us']:.2f}",
            f"{took['cpu_us']:.2f}",
        )
        table.add_row(name, *row, f"{peak:,.0f}")
    out = Console(highlight=False)
    out.print(table)
    out.print("us: processor time a message of each side; peak: resident memory of the larger one.")
