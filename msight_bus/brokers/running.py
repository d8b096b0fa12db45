"""Start and control a broker."""

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
from msight_bus.brokers.errors import BrokerUnavailableError, NoBrokerError, PortTakenError, ServerNotFoundError
from msight_bus.brokers.ports import free_port, require_free
from msight_bus.brokers.probing import answers
from msight_bus.brokers.process import GuardedProcess
from msight_bus.brokers.recipe import HOST, Instance, Kind, Recipe, Report
from msight_bus.errors import ConfigError

KindName = Literal["redis", "nats", "kafka"]

KINDS: Mapping[KindName, Kind] = {"redis": redis.KIND, "nats": nats.KIND, "kafka": kafka.KIND}

_ATTEMPTS = 3  # another program can take the port before the server listens
_POLL = 0.02  # seconds between two checks of a starting server


class RunningBroker:
    """A running broker on loopback; leaving ``with`` stops the broker and removes its data.

    The methods block; in a coroutine, call them with ``asyncio.to_thread``. The broker ends with this process.

    Attributes:
        kind: ``"redis"``, ``"nats"`` or ``"kafka"``.
        name: name of the product, such as ``"Valkey"``.
        version: version of the product.
        is_stand_in: whether the broker is another product that speaks the same protocol.
        host: always ``"127.0.0.1"``.
        port: TCP port.
        env: the ``MSIGHT_`` variables with the address; those of credentials and TLS are not included.
        log_path: file with the server's output, removed by ``stop``.
    """

    def __init__(self, kind: KindName, recipe: Recipe, instance: Instance, deadline: float) -> None:
        self.kind = kind
        self.name = recipe.name
        self.version = recipe.version
        self.is_stand_in = recipe.is_stand_in
        self.host = HOST
        self.port = instance.port
        self.env: Mapping[str, str] = MappingProxyType(dict(KINDS[kind].env(instance.port)))
        self.log_path = instance.directory / "server.log"
        self._speaks = recipe.speaks
        self._deadline = deadline
        container = instance.directory.name if recipe.in_container else None
        self._process = GuardedProcess(instance.directory, self.log_path, container=container)
        try:
            *prepare, self._serve = recipe.commands(instance)
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
        """Process id of the server, or of ``docker start`` for a server in a container. ``restart`` changes the id."""
        return self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        """Whether the server process is running; a frozen process is."""
        return self._process.is_running

    def stop(self) -> None:
        """Stop the server and remove its data; idempotent."""
        self._process.close()

    def kill(self) -> None:
        """Crash the server (SIGKILL). ``restart`` starts it with its stored data."""
        self._process.kill()

    def freeze(self) -> None:
        """Suspend the server (SIGSTOP): connections stay open, and the server does not answer."""
        self._process.freeze()

    def thaw(self) -> None:
        """Resume a frozen server (SIGCONT)."""
        self._process.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Terminate the server if it is running, start it on the same port with the same data, and wait until it answers.

        Raises:
            BrokerUnavailableError: the server did not start, or `stop` was called.
        """
        if self._process.is_closed:
            raise BrokerUnavailableError(f"{self} was stopped and its data removed; start another broker.")
        self._process.terminate()
        self._start()

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log without the frames of Java's stack traces; ``""`` without a log."""
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
        # Check the process after the answer, which can come from another server that took the port.
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
        raise kind(f"{self} {what}. Last lines of its log:\n{tail or '(empty: the machine may be busy; try again)'}")


def start(
    kind: KindName,
    *,
    port: int | None = None,
    config: Sequence[str] = (),
    arguments: Sequence[str] = (),
    report: Report | None = None,
    deadline: float = 50.0,
) -> RunningBroker:
    """Find a broker or download it, start it on loopback, and wait until it answers.

    Args:
        kind: ``"redis"``, ``"nats"`` or ``"kafka"``.
        port: TCP port on loopback; default: a free port.
        config: lines at the end of the server's configuration (``redis.conf``, ``nats.conf``, ``server.properties``), which
            override earlier lines; ``{port}`` is the port. Kafka's listener for clients is named CLIENT, as in
            ``listener.security.protocol.map=CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT``.
        arguments: additional command line arguments of the server; for Apache Kafka those of ``kafka-storage format``, such as
            ``--add-scram``, which creates users.
        report: receives a line about each step; an exception ends the start.
        deadline: seconds until the server must answer, without the download.

    Raises:
        ConfigError: ``kind`` is not a broker.
        NoBrokerError: no server program was found or downloaded; the message lists the ways to install one.
        PortTakenError: another program listens on ``port``.
        BrokerUnavailableError: the server did not start or answer; the message has the last lines of its log.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    say = report or (lambda line: None)
    recipe = find(kind, say)
    for attempt in range(1, _ATTEMPTS + 1):
        if port is not None:
            require_free(port)
        chosen = port or free_port()
        say(f"starting {recipe.name} {recipe.version} on {HOST}:{chosen}")
        instance = Instance(Path(tempfile.mkdtemp(prefix=f"msight-bus-{kind}-")), chosen, config, arguments)
        try:
            return RunningBroker(kind, recipe, instance, deadline)
        except PortTakenError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("not reached")


def find(kind: KindName, report: Report) -> Recipe:
    """Return the best server of this kind that is found or downloaded.

    Raises:
        NoBrokerError: there is none; the message lists the ways to install one, and the reasons of each failed attempt.
    """
    tried = []
    for finder in KINDS[kind].finders:
        try:
            return finder(report)
        except ServerNotFoundError as error:
            tried.append(str(error))
    lines = [f"No {KINDS[kind].label} broker was found or downloaded. Install one in one of these ways:"]
    lines += [f"  - {way}" for way in KINDS[kind].advice]
    lines += ["Tried:", *(f"  - {reason}" for reason in tried)]
    raise NoBrokerError("\n".join(lines))
