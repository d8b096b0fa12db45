"""``python -m tests.faults.pipeline --backend redis``: a pipeline of four processes whose processor is killed ten times.

Two cameras of 200 KB at 30 Hz, a processor of 20 ms and a sink into SQLite, on a broker of their own. At the end every published
frame is accounted for, by number: stored, dropped by a queue, or lost with a killed processor or during its absence; on Kafka all
are stored. What a living node logged, what it announced and what was counted here agree. The figures go to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

from msight_bus import (
    NodeConfig,
    Outgoing,
    ProcessingNode,
    QueuePolicy,
    SinkNode,
    SourceNode,
    brokers,
    connect,
    off_loop,
    paced,
    run,
    run_nodes,
)
from msight_bus.settings import BusSettings

FRAME_BYTES = 200_000
RATE = 30
KILLS = 10
CAMERAS = ("ne", "sw")
ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_KILLS = {"redis": 3.0, "nats": 3.0, "kafka": 12.0}  # Kafka waits for the session of a dead member: 6 s

# -- the four programs


class Camera(SourceNode):
    """Numbered frames."""

    def __init__(self, config: NodeConfig, frames: Path) -> None:
        super().__init__(config)
        self.published = frames.open("w", buffering=1)

    async def stream(self):
        number = 0
        async for _ in paced(RATE):
            yield Outgoing(f"{self.sensor_name} {number} ".encode().ljust(FRAME_BYTES, b"."), key=self.sensor_name)
            print(number, file=self.published)
            number += 1


class Processor(ProcessingNode):
    """20 ms of work for each frame."""

    async def process(self, data):
        camera, number, _ = data.split(b" ", 2)
        self.logger.debug("Frame %s %s", camera.decode(), number.decode())
        await off_loop(time.sleep, 0.02)
        return Outgoing(b"%b %b" % (camera, number), key=camera.decode())


class Store(SinkNode):
    """A row for each result."""

    def __init__(self, config: NodeConfig, path: Path) -> None:
        super().__init__(config)
        self.path = path

    async def on_start(self):
        self.database = sqlite3.connect(self.path)
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.execute("CREATE TABLE IF NOT EXISTS frames (camera TEXT, number INTEGER)")

    async def on_message(self, data):
        camera, number = data.decode().split()
        with self.database:
            self.database.execute("INSERT INTO frames VALUES (?, ?)", (camera, int(number)))

    async def on_stop(self):
        self.database.close()


def play(role: str, folder: Path) -> None:
    """Run one of the programs."""
    keeps = os.environ["MSIGHT_PUBSUB_BACKEND"] == "kafka"
    if role in CAMERAS:
        config = NodeConfig(name=f"camera_{role}", publish_topic_name="site.frames", sensor_name=role)
        run_nodes(Camera(config, folder / f"{role}.published"))
    elif role == "processor":
        # Live frames should be fresh; a log waits.
        config = NodeConfig(
            name="processor",
            subscribe_topic_name="site.frames",
            publish_topic_name="site.results",
            queue=None if keeps else QueuePolicy.latest(10),
            concurrency=4 if keeps else 1,
            heartbeat_update_interval=1,
            logging_level="DEBUG",
        )
        run_nodes(Processor(config))
    else:
        config = NodeConfig(name="store", subscribe_topic_name="site.results", heartbeat_update_interval=1)
        run_nodes(Store(config, folder / "frames.sqlite"))


# -- the run


class Pipeline:
    """The processes and their logs."""

    def __init__(self, backend: str, folder: Path, env: dict[str, str], stack: ExitStack) -> None:
        self.folder = folder
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), "MSIGHT_PUBSUB_BACKEND": backend, **env}
        self._env |= {"MSIGHT_KAFKA_SESSION_TIMEOUT": "6", "MSIGHT_DRAIN_TIMEOUT": "60"}
        self._stack = stack
        self.runs = 0

    def start(self, role: str) -> subprocess.Popen[bytes]:
        """Start a program and wait until it runs."""
        path = self.folder / (f"{role}.{self.runs}.log" if role == "processor" else f"{role}.log")
        self.runs += role == "processor"
        log = self._stack.enter_context(path.open("wb"))
        command = [sys.executable, "-m", "tests.faults.pipeline", "--play", role, "--folder", str(self.folder)]
        process = subprocess.Popen(command, env=self._env, stderr=log, cwd=ROOT)
        self._stack.callback(process.kill)
        begun = time.monotonic()
        while "Running on" not in path.read_text():
            if process.poll() is not None or time.monotonic() - begun > 90:
                raise SystemExit(f"{role} does not run:\n{path.read_text()[-3000:]}")
            time.sleep(0.02)
        return process

    def stored(self) -> list[tuple[str, int]]:
        """The rows so far."""
        with closing(sqlite3.connect(self.folder / "frames.sqlite")) as database:
            return database.execute("SELECT camera, number FROM frames").fetchall()

    def published(self) -> dict[str, list[int]]:
        """What each camera handed over."""
        return {name: [int(n) for n in (self.folder / f"{name}.published").read_text().split()] for name in CAMERAS}

    def log(self, run: int) -> str:
        """What one processor wrote."""
        return (self.folder / f"processor.{run}.log").read_text()


def end(process: subprocess.Popen[bytes], role: str) -> None:
    """SIGTERM: it drains and ends with status 0."""
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=90)
    if status:
        raise SystemExit(f"{role} ended with status {status}")


async def announced(backend: str, pipeline: Pipeline, processor: subprocess.Popen[bytes]) -> dict[str, int | None]:
    """End the processor; return its last announced figures."""
    async with connect(BusSettings(backend=backend)) as bus:
        registry = await bus.nodes()
        await registry.wait_until(lambda nodes: "processor" in nodes)
        await asyncio.to_thread(end, processor, "processor")
        await registry.wait_until(lambda nodes: any(info.ended for info in nodes.instances("processor")))
        (info,) = [info for info in registry.instances("processor") if info.ended]
        return {name: getattr(info.metrics, name) for name in ("messages_in", "messages_out", "dropped", "missing")}


def play_all(backend: str, folder: Path, env: dict[str, str]) -> None:
    """Run the pipeline and account for every frame."""
    with ExitStack() as stack:
        pipeline = Pipeline(backend, folder, env, stack)
        sink = pipeline.start("store")
        processor = pipeline.start("processor")
        cameras = {name: pipeline.start(name) for name in CAMERAS}
        for number in range(KILLS):
            time.sleep(SECONDS_BETWEEN_KILLS[backend])
            processor.kill()
            processor.wait()
            print(f"kill {number + 1}, {len(pipeline.stored())} rows", flush=True)
            processor = pipeline.start("processor")
        time.sleep(SECONDS_BETWEEN_KILLS[backend])
        for name, camera in cameras.items():
            end(camera, name)
        begun, rows = time.monotonic(), -1
        while rows != (rows := len(pipeline.stored())) or time.monotonic() - begun < 8:
            time.sleep(2.0)
        figures = run(announced(backend, pipeline, processor))
        end(sink, "store")
    account(backend, pipeline, figures)


def account(backend: str, pipeline: Pipeline, figures: dict[str, int | None]) -> None:
    """Name each frame's fate; raise SystemExit if one has none or if two accounts differ."""
    rows = pipeline.stored()
    stored = {name: {n for camera, n in rows if camera == name} for name in CAMERAS}
    # Where a log keeps everything there is nothing to look for: no frame may be missing.
    took, dropped = ([], {name: set() for name in CAMERAS}) if backend == "kafka" else read_logs(pipeline)
    fates: dict[str, int] = defaultdict(int)
    left: list[str] = []
    for name, numbers in pipeline.published().items():
        for number in numbers:
            if number in stored[name]:
                fates["stored"] += 1
            elif number in dropped[name]:
                fates["dropped"] += 1
            elif any(last < number < first for last, first in absences(name, stored, took)):
                fates["lost with or during the absence of a killed processor"] += 1
            else:
                left.append(f"{name} {number}")
    total = sum(map(len, pipeline.published().values()))
    print(f"{backend}: published {total}, rows {len(rows)} ({len(rows) - fates['stored']} twice)")
    for fate, count in fates.items():
        print(f"  {fate}: {count}")
    print(f"  left over: {len(left)} {left[:20]}")
    said = re.findall(
        r"Ended with status STOPPED\. In: ([\d,]+), out: ([\d,]+), dropped: ([\d,]+), missing: (\S+),",
        pipeline.log(KILLS),
    )
    summary = [None if figure == "?" else int(figure.replace(",", "")) for figure in said[0]]
    lines = len(re.findall(r": Dropped Message", pipeline.log(KILLS)))
    print(f"  the last processor announced {figures}, logged {summary}, named {lines} drops")
    wrong = [f"{len(left)} frames are left over"] if left else []
    if list(figures.values()) != summary:
        wrong.append("announcement and log differ")
    if figures["dropped"] != lines:
        wrong.append("drops that are counted and drops that are named differ")
    if figures["missing"]:
        wrong.append("messages were missing on a broker that was well")
    if backend == "kafka" and fates.keys() - {"stored"}:
        wrong.append("a log has lost frames")
    if wrong:
        raise SystemExit("; ".join(wrong))


def read_logs(pipeline: Pipeline) -> tuple[list[dict[str, list[int]]], dict[str, set[int]]]:
    """Return what each processor took, and what all dropped, by camera and number.

    The log names a message by session and sequence, which is a frame's number plus one; the line of the processor's own code
    behind that tells which camera has the session.
    """
    sessions: dict[str, str] = {}
    logs = [pipeline.log(number) for number in range(KILLS + 1)]
    for log in logs:
        session = ""
        for line in log.splitlines():
            if took := re.search(r"Received Message\(.*\) of session (\d+)", line):
                session = took[1]
            elif (frame := re.search(r": Frame (\w+) \d+$", line)) and session:
                assert sessions.setdefault(session, frame[1]) == frame[1], "one session of two cameras"
    took_by: list[dict[str, list[int]]] = []
    dropped: dict[str, set[int]] = {name: set() for name in CAMERAS}
    for log in logs:
        took_by.append({name: [] for name in CAMERAS})
        for what, sequence, session in re.findall(r"(Took|Dropped) Message\(.*sequence=(\d+)\) of session (\d+)", log):
            name, number = sessions[session], int(sequence) - 1
            if what == "Took":
                took_by[-1][name].append(number)
            else:
                dropped[name].add(number)
    return took_by, dropped


def absences(name: str, stored: dict[str, set[int]], took: list[dict[str, list[int]]]) -> list[tuple[float, float]]:
    """Return for each kill the last frame that was stored before, and the first that the next processor took."""
    found = []
    for before, after in pairwise(took):
        last = max((n for n in before[name] if n in stored[name]), default=-1)
        found.append((last, min(after[name], default=float("inf"))))
    return found


def main() -> None:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--backend", choices=SECONDS_BETWEEN_KILLS, action="append")
    arguments.add_argument("--play")
    arguments.add_argument("--folder", type=Path)
    chosen = arguments.parse_args()
    if chosen.play is not None:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
        play(chosen.play, chosen.folder)
        return
    for backend in chosen.backend or SECONDS_BETWEEN_KILLS:
        with tempfile.TemporaryDirectory() as folder, brokers.start(backend) as broker:
            os.environ.update(broker.env)
            play_all(backend, Path(folder), dict(broker.env))


if __name__ == "__main__":
    main()
