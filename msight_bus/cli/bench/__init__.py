"""``msight-bus bench``: how fast the bus is on your own brokers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msight_bus.bench.axes import bytes_text
from msight_bus.bench.compare import Job
from msight_bus.bench.profiles import PROFILES, Stream
from msight_bus.cli.bench.session import (
    BACKENDS,
    Outputs,
    measure,
    own_place,
    reachable_places,
    started_places,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

_BACKEND = typer.Option(help="redis, nats or kafka; unset, as in the environment.")
_JSON = typer.Option("--json", help="Write every figure, the machine and all versions to this file; - is stdout.")
_HTML = typer.Option("--html", help="Write a self-contained page with plots to this file.")
_SECONDS = typer.Option(min=0.2, help="How long each run sends, after its warm-up.")
_LOOP = typer.Option(help="Event loop of both sides.")
_SIZE = typer.Option(min=1, help="Bytes of a message; may be repeated.")
_SIZES = (128, 128 * 1024, 1_000_000)


class Loop(StrEnum):
    """Event loops to measure on."""

    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


@app.callback()
def bench() -> None:
    """Measure the bus on your own broker.

    A publisher and a subscriber run in two processes and use a topic of their own; the broker is the one that the
    `MSIGHT_` variables lead to (`msight-bus settings`). On Kafka the topics stay behind: they begin with
    `msight-bench.`. If a message is lost, the run is void and there is no figure.

    Times are microseconds (us), sizes bytes, 1 MB is a million bytes. *p99* is the time that 99 of 100 messages
    took at most. Figures of one machine say little about another.
    """


@app.command(
    epilog="""
Examples:

- `msight-bus bench latency`: 1 KiB at 1 000 messages a second

- `msight-bus bench latency --rate 30 --size 100000 --seconds 20`: like a camera

- `msight-bus bench latency --json - | jq .measurements[0].summary.p99.median`
"""
)
def latency(  # noqa: PLR0917 - the options of the command
    rate: Annotated[float, typer.Option(min=1, help="Messages a second.")] = 1000,
    size: Annotated[int, typer.Option(min=16, help="Bytes of a message.")] = 1024,
    seconds: Annotated[float, _SECONDS] = 5,
    loop: Annotated[Loop, _LOOP] = Loop.UVLOOP,
    backend: Annotated[str | None, _BACKEND] = None,
    json_path: Annotated[Path | None, _JSON] = None,
    html_path: Annotated[Path | None, _HTML] = None,
) -> None:
    """One-way latency at a fixed rate.

    Each message has an intended time, and its latency begins then, even if the one before it was slow. *slip* is how
    late the sender itself was: if it is above a tenth of the latency, the machine is too busy for this measurement.
    """
    name = f"{bytes_text(size)} at {rate:,g}/s"
    jobs = [Job(name, (Stream(name, rate, size),))]
    measure(lambda *_: [own_place(backend)], jobs, Outputs(json_path, html_path), seconds=seconds, loop=loop)


@app.command(
    epilog="""
Examples:

- `msight-bus bench throughput`: small, large and very large messages

- `msight-bus bench throughput --size 128 --loop asyncio`: one size, without uvloop
""",
)
def throughput(  # noqa: PLR0917 - the options of the command
    size: Annotated[list[int] | None, _SIZE] = None,
    seconds: Annotated[float, _SECONDS] = 3,
    loop: Annotated[Loop, _LOOP] = Loop.UVLOOP,
    backend: Annotated[str | None, _BACKEND] = None,
    json_path: Annotated[Path | None, _JSON] = None,
    html_path: Annotated[Path | None, _HTML] = None,
) -> None:
    """As many messages as go from one publisher to one subscriber with nothing lost.

    The publisher waits when more than a few megabytes are on their way. *msg/s* is what the subscriber has counted;
    *publisher us* and *subscriber us* are processor time a message.
    """
    jobs = _throughputs(size or _SIZES)
    measure(lambda *_: [own_place(backend)], jobs, Outputs(json_path, html_path), seconds=seconds, loop=loop)


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
    html_path: Annotated[Path | None, _HTML] = None,
) -> None:
    """One-way latency of sensors rather than of bare sizes.

    IMU: 200 Hz of 64 B. GNSS: 10 Hz of 200 B. Radar: 20 Hz of 4 KiB. Camera: 30 Hz of 100 KiB. LiDAR: 10 Hz of 1 MB.
    mix: all of them at the same time, each in processes of its own.
    """
    jobs = _profiles(names or list(PROFILES))
    measure(lambda *_: [own_place(backend)], jobs, Outputs(json_path, html_path), seconds=seconds)


@app.command(
    epilog="""
Examples:

- `msight-bus bench compare`: every broker that answers where the environment leads to

- `msight-bus bench compare --start --html report.html`: one of each, started for this; a page with plots

- `msight-bus bench compare --backend redis --backend nats --profile camera --profile mix --rounds 5`

- `msight-bus bench compare --start --profile imu --curves --html report.html`: with the curves to saturation
"""
)
def compare(  # noqa: PLR0917 - the options of the command
    backend: Annotated[
        list[str] | None, typer.Option(help="redis, nats or kafka; may be repeated; unset, all.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start these brokers here, for as long as it takes.")] = False,
    profile: Annotated[
        list[str] | None, typer.Option(help=f"Sensors: any of {', '.join(PROFILES)}; may be repeated.")
    ] = None,
    size: Annotated[list[int] | None, _SIZE] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; they take turns.")] = 3,
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Latency by rate until saturation, and throughput by size; a minute a backend."),
    ] = False,
    seconds: Annotated[float, _SECONDS] = 2,
    json_path: Annotated[Path | None, _JSON] = None,
    html_path: Annotated[Path | None, _HTML] = None,
) -> None:
    """Several backends beside one another: latency of sensors, throughput of sizes.

    Without `--profile` and `--size` it takes all sensors and three sizes, which is about four minutes for three
    backends. In each round each backend runs once, and the first one a second time (*again*): how far those two are
    apart is the A/A band, and a smaller difference between backends means nothing. *ratio* is to the first backend in
    the same round: the median, the lowest and the highest round. A latency ratio below 1 is faster than the first one,
    a throughput ratio above 1 is.
    """
    names = backend or []
    for name in names:
        if name not in BACKENDS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(BACKENDS)}.", param_hint="--backend")
    whole = not profile and not size
    jobs = _profiles(list(PROFILES) if whole else profile or [])
    jobs += _throughputs(_SIZES if whole else size or [])
    measure(
        lambda stack, err: started_places(names, stack, err) if start else reachable_places(names, err),
        jobs,
        Outputs(json_path, html_path),
        seconds=seconds,
        rounds=rounds,
        curves=curves,
    )


def _profiles(names: list[str]) -> list[Job]:
    for name in names:
        if name not in PROFILES:
            raise typer.BadParameter(f"{name!r} is no profile; there are {', '.join(PROFILES)}.")
    return [Job(name, PROFILES[name]) for name in names]


def _throughputs(sizes: list[int] | tuple[int, ...]) -> list[Job]:
    return [Job(bytes_text(number), size=number) for number in sizes]
