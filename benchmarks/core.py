"""Rows that measure the core: topics, sizes, lists, patterns, foreign payloads, the memory backend, both ways to publish.

`benchmarks.core_program` runs a row in its own process, with a given source tree. A received stream was recorded once from a bus
that published the same row; this process replays it, with at most one window of messages in flight.
"""

from __future__ import annotations

import fnmatch
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msight_bus import brokers

PRESENT = Path(__file__).resolve().parents[1]
BACKENDS = ("redis", "nats", "memory")
FIGURES = ("rate", "cpu_us", "peak_mib")
MANY = 1000
"""Number of topics of the rows with many topics."""

WINDOW = 4000
"""Maximum number of messages in flight, below the bounds of a queue and of the broker's buffer for a subscriber."""

_PROGRAM = Path(__file__).with_name("core_program.py")
_WITHIN = 90.0
_CHUNK = 16 * 1024
_COUNTING = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
_SLOWER = 60
"""Maximum slowdown of a program under valgrind."""

_EQUAL = (128,)
_mixed = list(range(80, 901))
random.Random(1).shuffle(_mixed)
_MIXED = tuple(_mixed)
"""A prime number of sizes, so that each of 1,000 topics has all sizes in turn."""

_ONE_SUBSCRIPTION: tuple[Literal["list"], Literal["pattern"]] = ("list", "pattern")
Sizes = Literal["128 B", "80-900 B"]
Figures = dict[str, float]


class FailedRunError(Exception):
    """A program failed or did not end, so there are no figures."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        backend: the backend.
        what: ``receive``: messages of a bus, with a subscription for each topic; ``list``, ``pattern``: the same with one
            subscription; ``foreign``: messages without metadata; ``publish``; ``publisher``.
        topics: number of topics, used in turn.
        sizes: name of the payload sizes.
        runs: consecutive messages of each topic.
    """

    backend: str
    what: Literal["receive", "list", "pattern", "foreign", "publish", "publisher"]
    topics: int
    sizes: Sizes
    runs: int = 1

    @property
    def name(self) -> str:
        """Name in tables and for ``--rows``."""
        runs = f" in runs of {self.runs}" if self.runs > 1 else ""
        return f"{self.backend} {self.what} {self.topics} x {self.sizes}{runs}"

    def payload_sizes(self) -> Sequence[int]:
        """Return the payload sizes in bytes, which the messages use in turn."""
        return _EQUAL if self.sizes == "128 B" else _MIXED

    def topic_names(self) -> list[str]:
        """Return the topics, which the messages use in turn."""
        return [f"core.t{number}" for number in range(self.topics)]


def rows(patterns: Sequence[str] = ()) -> list[Row]:
    """Return the rows whose name matches a shell pattern; without patterns, all rows.

    Raises:
        ValueError: a pattern matches no row.
    """
    shapes: list[tuple[int, Sizes]] = [(1, "128 B"), (1, "80-900 B"), (MANY, "128 B"), (MANY, "80-900 B")]
    found = [
        Row(backend, what, topics, sizes)
        for backend in BACKENDS
        for what in ("receive", "foreign", "publish", "publisher")
        for topics, sizes in shapes
        if backend != "memory"
        or what in {"publish", "publisher"}  # the memory backend publishes and receives in one process
    ]
    for backend in BACKENDS:
        for what in _ONE_SUBSCRIPTION:
            found += [Row(backend, what, topics, sizes) for topics, sizes in shapes if topics == MANY]
            found.append(Row(backend, what, MANY, "128 B", runs=64))
    for pattern in patterns:
        if not any(fnmatch.fnmatch(row.name, pattern) for row in found):
            names = "\n".join(row.name for row in found)
            raise ValueError(f"No row matches {pattern!r}. The rows are:\n{names}")
    return [row for row in found if not patterns or any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


class Core:
    """Runs rows on brokers that are started on first use and stopped on leaving the context.

    Args:
        recorded_from: source tree whose bus publishes the recorded streams.
        messages: messages of a run; a tenth of them is the warm-up.
        counted: whether to count machine instructions with valgrind.
    """

    def __init__(self, recorded_from: Path, messages: int, *, counted: bool = False) -> None:
        self._recorded_from, self._messages, self._counted = recorded_from.resolve(), messages, counted
        self._brokers: dict[str, brokers.RunningBroker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Core:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def versions(self) -> dict[str, str]:
        """Name and version of the started brokers."""
        return {kind: f"{broker.name} {broker.version}" for kind, broker in self._brokers.items()}

    def run(self, row: Row, tree: Path) -> Figures:
        """Run a row once with the package of ``tree``.

        Raises:
            FailedRunError: there are no figures.
        """
        tree = tree.resolve()
        env = self._env(row.backend)
        if row.backend == "memory" or row.what in {"publish", "publisher"}:
            return self._play(row, tree, env, counted=self._counted)
        return self._play(row, tree, env, self._recorded(row), counted=self._counted)

    def _env(self, backend: str) -> dict[str, str]:
        if backend == "memory":
            return {}
        if backend not in self._brokers:
            kind: brokers.KindName = "redis" if backend == "redis" else "nats"
            self._brokers[backend] = self._stack.enter_context(brokers.start(kind))
        return dict(self._brokers[backend].env)

    def _play(
        self, row: Row, tree: Path, env: Mapping[str, str], feed: Path | None = None, *, counted: bool = False
    ) -> Figures:
        progress = self._folder / "progress"
        progress.write_bytes(bytes(8))
        settings = {name: value for name, value in os.environ.items() if not name.startswith("MSIGHT_")}
        settings |= {**env, "MSIGHT_PUBSUB_BACKEND": row.backend, "PYTHONPATH": str(tree)}
        settings["MSIGHT_ANNOUNCE_INTERVAL"] = "3600"
        order = {
            "do": "receive" if feed is not None else "both" if row.backend == "memory" else "publish",
            "through": row.what,
            "topic_names": row.topic_names(),
            "runs": row.runs,
            "sizes": row.payload_sizes(),
            "messages": self._messages,
            "progress": str(progress),
        }
        if counted:
            settings["PYTHONHASHSEED"] = "0"
        command = [*(_COUNTING if counted else ()), sys.executable, "-P", str(_PROGRAM), json.dumps(order)]
        within = _WITHIN * (_SLOWER if counted else 1)
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, env=settings, cwd=self._folder, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            timer = threading.Timer(within, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                if process.stdout.readline() == "ready\n" and feed is not None:
                    self._feed(feed, progress, port_of(env), process)
                written = process.stdout.read()  # not communicate(), which misses what readline() has buffered
                process.wait()
            finally:
                timer.cancel()
                process.kill()
            errors.seek(0)
            complaints = errors.read()
        if process.returncode:
            last = (complaints.strip().splitlines() or [f"it was ended after {within:g} s"])[-1]
            raise FailedRunError(f"{row.name}: {last}")
        figures = json.loads(written)
        package = Path(figures.pop("package"))
        if not package.is_relative_to(tree):
            raise FailedRunError(f"{row.name}: the program imported {package}, which is not in {tree}")
        if counted:
            return {"instructions": float(_instructions(complaints))}
        return dict(figures)

    def _feed(self, feed: Path, progress: Path, port: int, process: subprocess.Popen[str]) -> None:
        """Send a recorded stream with at most one window of messages in flight."""
        stream = memoryview(feed.read_bytes())
        per_message = len(stream) / self._messages
        with socket.create_connection(("127.0.0.1", port)) as connection, progress.open("rb", buffering=0) as counted:
            draining = threading.Thread(target=_drain, args=(connection,))
            draining.start()
            for start in range(0, len(stream), _CHUNK):
                while process.poll() is None:
                    counted.seek(0)
                    if start / per_message - int.from_bytes(counted.read(8), "little") < WINDOW:
                        connection.sendall(stream[start : start + _CHUNK])
                        break
                    time.sleep(0.0002)
            process.wait()
            connection.shutdown(socket.SHUT_RDWR)
            draining.join()

    # -- recorded streams

    def _recorded(self, row: Row) -> Path:
        """Return the file with the bytes that a publisher of the row sends, recorded on first use."""
        path = self._folder / row.name.replace(" ", "_")
        if not path.exists():
            path.write_bytes(self._foreign(row) if row.what == "foreign" else self._record(row))
        return path

    def _foreign(self, row: Row) -> bytes:
        topics = [topic.encode() for topic in row.topic_names()]
        sizes = row.payload_sizes()
        block = bytes(range(256)) * 4
        parts = [] if row.backend == "redis" else [b'CONNECT {"verbose":false}\r\n']
        for number in range(self._messages):
            topic, payload = topics[number % len(topics)], block[: sizes[number % len(sizes)]]
            if row.backend == "redis":
                parts.append(
                    b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(topic), topic, len(payload), payload)
                )
            else:
                parts.append(b"PUB %b %d\r\n%b\r\n" % (topic, len(payload), payload))
        return b"".join(parts)

    def _record(self, row: Row) -> bytes:
        env = self._env(row.backend)
        port = port_of(env)
        with _recorder(port) as (own_port, streams):
            env = {name: value.replace(str(port), str(own_port)) for name, value in env.items()}
            publishing = Row(row.backend, "publish", row.topics, row.sizes, row.runs)
            self._play(publishing, self._recorded_from, env)
        return bytes(max(streams, key=len))


def _instructions(report: str) -> int:
    """Return the total of a cachegrind report."""
    found = re.search(r"I *refs: *([\d,]+)", report)
    if found is None:
        raise FailedRunError(f"valgrind reported no instructions: {report.strip()[-200:]}")
    return int(found[1].replace(",", ""))


def port_of(env: Mapping[str, str]) -> int:
    """Return the port in the variables of a running broker."""
    return int(next(value for name, value in env.items() if name.endswith(("PORT", "SERVERS"))).rpartition(":")[2])


@contextmanager
def _recorder(port: int) -> Iterator[tuple[int, list[bytearray]]]:
    """Yield a port that forwards to the broker, and the bytes that clients send, by connection."""
    streams: list[bytearray] = []
    threads: list[threading.Thread] = []

    def begin(target: Callable[..., None], *args: object) -> None:
        threads.append(threading.Thread(target=target, args=args))
        threads[-1].start()

    def accept() -> None:
        with suppress(OSError):  # closed at the end
            while True:
                client = sockets.enter_context(listener.accept()[0])
                server = sockets.enter_context(socket.create_connection(("127.0.0.1", port)))
                streams.append(bytearray())
                begin(_forward, client, server, streams[-1])
                begin(_forward, server, client, None)

    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        begin(accept)
        try:
            yield listener.getsockname()[1], streams
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def _forward(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    with suppress(OSError):
        while data := source.recv(256 * 1024):
            if kept is not None:
                kept += data
            target.sendall(data)
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def _drain(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(64 * 1024):
            pass
