"""The demo: real footage through a pipeline of nodes over a real broker, with a live table.

    python -m examples.camera_pipeline [--backend redis|nats|kafka|memory] [--frames FOLDER] [--out FOLDER]

It starts a broker of its own and stops it at the end. `make demo` is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import time
import warnings
from itertools import chain, islice
from pathlib import Path

import cv2
from rich.console import Console
from rich.live import Live

import msight_bus
from msight_bus import BusSettings, brokers
from msight_bus.cli.top import render
from msight_bus.nodes import run_until
from msight_bus.registry import Registry

from .footage import Frame, clip_frames, folder_frames
from .nodes import Camera, DetectorNode, Sink, TrackerNode
from .pictures import FootageError

console = Console(highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.camera_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", default="redis", type=str.lower, choices=["redis", "nats", "kafka", "memory"])
    parser.add_argument("--frames", type=Path, help="JPEGs named by capture time; a street clip if not given")
    parser.add_argument("--out", type=Path, help="where the clip and the picture go; out/<backend> if not given")
    return parser.parse_args()


async def show(registry: Registry, began: float) -> None:
    """The nodes as they announce themselves: a live table on a terminal, a line a second elsewhere."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(render(registry), refresh=True)
                await asyncio.sleep(0.5)
    while True:
        await asyncio.sleep(1)
        rates = "  ".join(f"{node.name} {max(node.metrics.rate_in, node.metrics.rate_out):.0f}/s" for node in registry)
        console.print(f"{time.monotonic() - began:4.0f} s  {rates}")


async def pipeline(settings: BusSettings, frames: list[Frame], footage, out: Path) -> None:
    rate = (len(frames) - 1) / max(frames[-1].captured - frames[0].captured, 0.001)
    async with msight_bus.connect(settings) as bus:
        workers = 2 if bus.capabilities.load_balancing else 1
        sink = Sink(out, rate, {"detector", "tracker", "sink"})
        camera = Camera(chain(frames, footage), sink)
        nodes = [camera, *(DetectorNode() for _ in range(workers)), TrackerNode(), sink]
        shared = "two detectors share the frames" if workers == 2 else "one detector: this broker shares nothing"
        console.print(f"Pipeline: camera -> detector -> tracker -> sink; {shared}.")
        registry = await bus.nodes()
        began = time.monotonic()
        showing = asyncio.create_task(show(registry, began))
        try:
            await run_until(bus, *nodes, stop=asyncio.Event(), end_with_sources=True)
            await registry.wait_until(lambda known: all(node.status == "STOPPED" for node in known))
        finally:
            showing.cancel()
            await asyncio.wait((showing,))
            sink.clip.close()
        report(bus, camera, sink, registry, out, time.monotonic() - began)


def report(bus: msight_bus.Bus, camera: Camera, sink: Sink, registry: Registry, out: Path, took: float) -> None:
    """What happened, on the screen and in the picture."""
    latencies = sorted(sink.latencies)
    p50, p99 = (latencies[int(share * (len(latencies) - 1))] * 1000 for share in (0.5, 0.99)) if latencies else (0, 0)
    facts = [
        ("broker", bus.backend),
        ("frames", f"{len(latencies)} of {camera.sent} reached the sink"),
        ("road users", str(sink.objects)),
        ("camera to sink", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"),
        ("dropped by queues", str(sum(node.metrics.dropped for node in registry))),
        ("took", f"{took:.1f} s"),
    ]
    picture = out / "summary.png"
    sink.summary.write(picture, f"{sink.objects} road users over {bus.backend}", facts)
    console.print(render(registry))
    for name, value in [*facts, ("clip", str(sink.clip.path)), ("picture", str(picture))]:
        console.print(f"{name:<18} {value}")


def main() -> None:
    asked = arguments()
    out = asked.out or Path("out") / asked.backend
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.simplefilter(
        "ignore", msight_bus.CapabilityWarning
    )  # the pipeline reads the capability and says it itself
    cv2.setNumThreads(1)
    try:
        footage = folder_frames(asked.frames) if asked.frames else clip_frames()
        first = list(islice(footage, 2))
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("MSIGHT_")}
            if asked.backend != "memory":
                broker = stack.enter_context(brokers.start(asked.backend, report=console.print))
                environment |= broker.env
                stand_in = " - a stand-in, not Apache Kafka" if broker.is_stand_in else ""
                console.print(f"Broker: {broker}{stand_in}")
            settings = BusSettings(environ=environment, backend=asked.backend)
            msight_bus.run(pipeline(settings, first, footage, out))
    except (FootageError, msight_bus.BusError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped.")


if __name__ == "__main__":
    main()
