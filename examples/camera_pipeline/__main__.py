"""The demo: a pipeline of nodes processes real footage over a real broker, with a live table.

    python -m examples.camera_pipeline [--backend redis|nats|kafka|memory] [--frames FOLDER|VIDEO] [--rate 10] [--out FOLDER]

The demo starts a broker and stops it at the end; `make demo` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
from rich.console import Console
from rich.live import Live

import msight_bus
from msight_bus import BusSettings, brokers
from msight_bus.cli.top import render
from msight_bus.nodes import run_until
from msight_bus.registry import Registry

from .footage import RATE, Frame, cameras
from .nodes import CameraNode, DetectorNode, Sink, TrackerNode
from .pictures import FootageError
from .results import Results

console = Console(highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.camera_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", default="redis", type=str.lower, choices=["redis", "nats", "kafka", "memory"])
    parser.add_argument(
        "--frames",
        type=Path,
        help="footage of fixed cameras: a video, a folder of JPEGs, or a folder with one of these per camera; "
        "default: two roadside cameras at Mcity",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=RATE,
        help="frames a second, for JPEGs whose names are not all capture times like '2023-10-13 16-46-53-100580.jpg'",
    )
    parser.add_argument("--out", type=Path, help="folder for tables and picture; default: out/<backend>")
    return parser.parse_args()


async def show(registry: Registry, sink: Sink, results: Results) -> None:
    """Show the table of nodes on a terminal; print one line a second elsewhere."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(render(registry), refresh=True)
                await asyncio.sleep(0.5)
    while True:
        await asyncio.sleep(1)
        console.print(f"{len(sink.latencies):6} frames at the sink; road users: {results.road_users}", soft_wrap=True)


async def pipeline(settings: BusSettings, footage: dict[str, Iterator[Frame]], out: Path) -> None:
    results = Results(out)
    async with msight_bus.connect(settings) as bus:
        behind = [*(DetectorNode(camera) for camera in footage), TrackerNode()]
        sink = Sink(results, {node.name for node in behind} | {"sink"})
        sources = [CameraNode(camera, frames, sink) for camera, frames in footage.items()]
        console.print(f"Pipeline: {len(footage)} x (camera -> detector) -> tracker -> sink")
        registry = await bus.nodes()
        began = time.monotonic()
        showing = asyncio.create_task(show(registry, sink, results))
        try:
            await run_until(bus, *sources, *behind, sink, stop=asyncio.Event(), end_with_sources=True)
            await registry.wait_until(lambda known: all(node.status == "STOPPED" for node in known))
        finally:
            showing.cancel()
            await asyncio.wait((showing,))
        latencies = sorted(sink.latencies) or [0.0]
        p50, p99 = (latencies[int(share * (len(latencies) - 1))] * 1000 for share in (0.5, 0.99))
        facts = [
            ("broker", bus.backend),
            ("frames", f"{len(sink.latencies)} of {sum(camera.sent for camera in sources)} reached the sink"),
            ("road users", results.road_users),
            ("camera to sink", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"),
            ("dropped by queues", str(sum(node.metrics.dropped for node in registry))),
            ("took", f"{time.monotonic() - began:.1f} s"),
        ]
        picture = results.write(f"Road users over {bus.backend}", facts)
        console.print(render(registry), soft_wrap=True)
        for name, value in [*facts, ("tables, picture", f"{out}, {picture}")]:
            console.print(f"{name:<18} {value}", soft_wrap=True)


def main() -> None:
    asked = arguments()
    out = asked.out or Path("out") / asked.backend
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    cv2.setNumThreads(1)
    try:
        footage = cameras(asked.frames, asked.rate)
        with contextlib.ExitStack() as stack:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("MSIGHT_")}
            if asked.backend != "memory":
                broker = stack.enter_context(brokers.start(asked.backend, report=console.print))
                environment |= broker.env
                stand_in = " - a stand-in, not Apache Kafka" if broker.is_stand_in else ""
                console.print(f"Broker: {broker}{stand_in}")
            settings = BusSettings(environ=environment, backend=asked.backend)
            msight_bus.run(pipeline(settings, footage, out))
    except (FootageError, msight_bus.BusError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped.")


if __name__ == "__main__":
    main()
