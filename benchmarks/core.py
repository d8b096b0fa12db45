"""The rows that show the core's work: topics, sizes, foreign payloads, the memory backend, both ways to publish.

A row is run by `benchmarks.core_program` in a process of its own, with a source tree of choice. What it receives was
recorded once from a bus that published the same row, and is sent again from here, never further ahead than a window.
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
"""Topics of the rows of many topics."""

WINDOW = 4000
"""Messages that are sent ahead, which is less than a queue takes and a broker holds for a subscriber."""

_PROGRAM = Path(__file__).with_name("core_program.py")
_WITHIN = 90.0
_CHUNK = 16 * 1024
_COUNTING = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
_SLOWER = 60
"""Times that a program takes under valgrind, at most."""

_EQUAL = (128,)
_mixed = list(range(80, 901))
random.Random(1).shuffle(_mixed)
_MIXED = tuple(_mixed)
"""A prime number of sizes, so that each of 1,000 topics in turn sees them all."""

Sizes = Literal["128 B", "80-900 B"]
Figures = dict[str, float]


class FailedRunError(Exception):
    """A program failed, or did not end; there are no figures."""


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        backend: where.
        what: ``receive`` a bus's messages or ``foreign`` ones; publish by ``publish`` or through ``publisher()``.
        topics: round robin over so many.
        sizes: of the payloads.
    """

    backend: str
    what: Literal["receive", "foreign", "publish", "publisher"]
    topics: int
    sizes: Sizes

    @property
    def name(self) -> str:
        """For tables and ``--rows``."""
        return f"{self.backend} {self.what} {self.topics} x {self.sizes}"

    def payload_sizes(self) -> Sequence[int]:
        """In bytes, one message after the other, and again from the first."""
        return _EQUAL if self.sizes == "128 B" else _MIXED

    def topic_names(self) -> list[str]:
        """One message after the other, and again from the first."""
        return [f"core.t{number}" for number in range(self.topics)]


def rows(patterns: Sequence[str] = ()) -> list[Row]:
    """Those whose name matches one of the patterns of a shell; without patterns, all.

    Raises:
        ValueError: a pattern matches none.
    """
    shapes: list[tuple[int, Sizes]] = [(1, "128 B"), (1, "80-900 B"), (MANY, "128 B"), (MANY, "80-900 B")]
    found = [
        Row(backend, what, topics, sizes)
        for backend in BACKENDS
        for what in ("receive", "foreign", "publish", "publisher")
        for topics, sizes in shapes
        if backend != "memory" or what in {"publish", "publisher"}  # in one process it is published and received
    ]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(row.name, pattern) for row in found):
            names = "\n".join(row.name for row in found)
            raise ValueError(f"No row matches {pattern!r}. The rows are:\n{names}")
    return [row for row in found if not patterns or any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


class Core:
    """Runs rows on brokers that it starts when they are first needed; a context manager that ends them.

    Args:
        recorded_from: source tree whose bus publishes what is received.
        messages: of a run, a tenth of them to warm up.
        counted: count machine instructions with valgrind; what was recorded is recorded without it.
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
        """The brokers that were started."""
        return {kind: f"{broker.name} {broker.version}" for kind, broker in self._brokers.items()}

    def run(self, row: Row, tree: Path) -> Figures:
        """One run of a row with the package of ``tree``.

        Raises:
            FailedRunError: there are no figures.
        """
        tree = tree.resolve()
        env = self._env(row.backend)
        if row.what in {"publish", "publisher"}:
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
            "sizes": row.payload_sizes(),
            "messages": self._messages,
            "progress": str(progress),
        }
        if counted:
            settings["PYTHONHASHSEED"] = "0"
        command = [*(_COUNTING if counted else ()), sys.executable, "-P", str(_PROGRAM), json.dumps(order)]
        within = _WITHIN * (_SLOWER if counted else 1)
        with subprocess.Popen(
            command, env=settings, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            timer = threading.Timer(within, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                if process.stdout.readline() == "ready\n" and feed is not None:
                    self._feed(feed, progress, port_of(env), process)
                written, complaints = process.communicate()
            finally:
                timer.cancel()
                process.kill()
        if process.returncode:
            last = (complaints.strip().splitlines() or [f"it was ended after {within:g} s"])[-1]
            raise FailedRunError(f"{row.name}: {last}")
        figures = json.loads(written)
        package = Path(figures.pop("package"))
        if not package.is_relative_to(tree):
            raise FailedRunError(f"{row.name}: it ran {package}, which is not in {tree}")
        if counted:
            return {"instructions": float(_instructions(complaints))}
        return dict(figures)

    def _feed(self, feed: Path, progress: Path, port: int, process: subprocess.Popen[str]) -> None:
        """Send a recorded stream, no further ahead of the receiver than a window."""
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

    # -- what is received

    def _recorded(self, row: Row) -> Path:
        """The bytes that a publisher of the row sends, as a file; made when first needed."""
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
            publishing = Row(row.backend, "publish", row.topics, row.sizes)
            self._play(publishing, self._recorded_from, env)
        return bytes(max(streams, key=len))


def _instructions(report: str) -> int:
    """The total in a report of cachegrind."""
    found = re.search(r"I *refs: *([\d,]+)", report)
    if found is None:
        raise FailedRunError(f"valgrind reported no instructions: {report.strip()[-200:]}")
    return int(found[1].replace(",", ""))


def port_of(env: Mapping[str, str]) -> int:
    """The port in the variables of a running broker."""
    return int(next(value for name, value in env.items() if name.endswith(("PORT", "SERVERS"))).rpartition(":")[2])


@contextmanager
def _recorder(port: int) -> Iterator[tuple[int, list[bytearray]]]:
    """A port that leads to the broker's, and what clients send through it, connection by connection."""
    streams: list[bytearray] = []
    threads: list[threading.Thread] = []

    def begin(target: Callable[..., None], *args: object) -> None:
        threads.append(threading.Thread(target=target, args=args))
        threads[-1].start()

    def accept() -> None:
        with suppress(OSError):  # it is shut down at the end
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
