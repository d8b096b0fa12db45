"""Starts a broker and holds it."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, Self

from msight_bus.brokers import kafka, nats, redis
from msight_bus.brokers.errors import BrokerUnavailableError, NoBrokerError, NotHereError, PortTakenError
from msight_bus.brokers.ports import free_port, require_free
from msight_bus.brokers.probing import answers
from msight_bus.brokers.process import GuardedProcess
from msight_bus.brokers.recipe import HOST, Kind, Place, Recipe, Report

KindName = Literal["redis", "nats", "kafka"]

KINDS: Mapping[KindName, Kind] = {"redis": redis.KIND, "nats": nats.KIND, "kafka": kafka.KIND}

_ATTEMPTS = 3  # a free port can be taken before the server listens on it
_POLL = 0.02  # seconds between two looks at a starting server


class RunningBroker:
    """A real broker on loopback that we started; leaving ``with`` stops it and removes its data.

    Its methods block; in a coroutine call them through ``asyncio.to_thread``. It never outlives this process.

    Attributes:
        kind: ``"redis"``, ``"nats"`` or ``"kafka"``.
        name: of the product, such as ``"Valkey"``.
        version: of the product, as it tells it.
        is_stand_in: whether it speaks the protocol but is another product.
        host: always ``"127.0.0.1"``.
        port: TCP port.
        env: the ``MSIGHT_`` variables that lead to it. Credentials and TLS are up to whoever configured them.
        log_path: file with all that the server printed, gone after ``stop``.
    """

    def __init__(self, kind: KindName, recipe: Recipe, place: Place, deadline: float) -> None:
        self.kind = kind
        self.name = recipe.name
        self.version = recipe.version
        self.is_stand_in = recipe.is_stand_in
        self.host = HOST
        self.port = place.port
        self.env: Mapping[str, str] = MappingProxyType(dict(KINDS[kind].env(place.port)))
        self.log_path = place.directory / "server.log"
        self._speaks = recipe.speaks
        self._deadline = deadline
        container = place.directory.name if recipe.in_container else None
        self._process = GuardedProcess(place.directory, self.log_path, container=container)
        try:
            *prepare, self._serve = recipe.commands(place)
            for command in prepare:
                self._prepare(command)
            self._start()
        except BaseException:
            self.stop()
            raise

    def __str__(self) -> str:
        return f"{self.name} {self.version} on {self.host}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server, of ``docker start`` for one in a container. It changes on ``restart``."""
        return self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        """Whether the server process runs; a frozen one does."""
        return self._process.is_running

    def stop(self) -> None:
        """End the server and remove its data. May be called again."""
        self._process.close()

    def kill(self) -> None:
        """Let the server crash: SIGKILL. ``restart`` brings it back with what it had stored."""
        self._process.kill()

    def freeze(self) -> None:
        """Let the server hang: SIGSTOP. Connections stay open and nothing answers."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let a frozen server go on: SIGCONT."""
        self._process.signal(signal.SIGCONT)

    def restart(self) -> None:
        """End the server in order if it runs, start it with the same port and data, wait until it answers.

        Raises:
            BrokerUnavailableError: it did not come back.
        """
        self._process.terminate()
        self._start()

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log, less the frames of Java's tracebacks; ``""`` if there is none."""
        try:
            text = self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        kept = [line for line in text.splitlines() if line.strip() and not re.match(r"\s+(at |\.\.\. )", line)]
        return "\n".join(kept[-lines:])

    def _prepare(self, command: Sequence[str]) -> None:
        self._process.start(command)
        try:
            code = self._process.wait(self._deadline)
        except subprocess.TimeoutExpired:
            self._give_up(f"could not be prepared within {self._deadline:g} s")
        if code:
            self._give_up(f"could not be prepared (exit code {code})")

    def _start(self) -> None:
        self._process.start(self._serve)
        limit = time.monotonic() + self._deadline
        # It has to run after it answered: the answer could be that of another server which took the port.
        while not (answers(self.port, self._speaks) and self.is_alive):
            if not self.is_alive:
                self._give_up(f"ended with exit code {self._process.wait()} before it answered")
            if time.monotonic() > limit:
                self._give_up(f"did not answer within {self._deadline:g} s")
            time.sleep(_POLL)

    def _give_up(self, what: str) -> None:
        tail = self.log_tail()
        taken = re.search("address already in use|port is already allocated", tail, re.IGNORECASE)
        kind = PortTakenError if taken else BrokerUnavailableError
        raise kind(f"{self} {what}. The end of its log:\n{tail or '(empty)'}")


def start(
    kind: KindName,
    *,
    port: int | None = None,
    config: Sequence[str] = (),
    arguments: Sequence[str] = (),
    report: Report | None = None,
    deadline: float = 30.0,
) -> RunningBroker:
    """Find a broker on this machine, fetch it if it is missing, start it on loopback, wait until it answers.

    Args:
        kind: ``"redis"``, ``"nats"`` or ``"kafka"``.
        port: TCP port on loopback; a free one when ``None``.
        config: lines for the end of the server's configuration (``redis.conf``, ``nats.conf``,
            ``server.properties``), where they win; ``{port}`` stands for the port. Kafka's listener for
            clients has the name CLIENT, as in
            ``listener.security.protocol.map=CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT``.
        arguments: further command line arguments of the server; for Apache Kafka those of
            ``kafka-storage format``, where ``--add-scram`` makes users.
        report: receives a short line about each thing that is done; what it raises ends the start.
        deadline: seconds that the server has to answer, once it was fetched.

    Raises:
        NoBrokerError: none can be had; the message lists every way to get one.
        PortTakenError: somebody listens on ``port``.
        BrokerUnavailableError: it did not start or did not answer; the message has the end of its log.
    """
    say = report or (lambda line: None)
    recipe = find(kind, say)
    for attempt in range(1, _ATTEMPTS + 1):
        if port is not None:
            require_free(port)
        chosen = port or free_port()
        say(f"starting {recipe.name} {recipe.version} on {HOST}:{chosen}")
        place = Place(Path(tempfile.mkdtemp(prefix=f"msight-bus-{kind}-")), chosen, config, arguments)
        try:
            return RunningBroker(kind, recipe, place, deadline)
        except PortTakenError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("not reached")


def find(kind: KindName, report: Report) -> Recipe:
    """Return the best server of this kind that can be had here, fetched if need be.

    Raises:
        NoBrokerError: there is none; the message has every way to get one, and why each failed here.
    """
    tried = []
    for finder in KINDS[kind].finders:
        try:
            return finder(report)
        except NotHereError as error:
            tried.append(str(error))
    lines = [f"No {KINDS[kind].label} broker can be had on this machine. Any one of these gives one:"]
    lines += [f"  - {way}" for way in KINDS[kind].advice]
    lines += ["What was tried:", *(f"  - {reason}" for reason in tried)]
    raise NoBrokerError("\n".join(lines))
