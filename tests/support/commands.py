"""Run commands of ``msight-bus``, while a bus in another thread publishes or receives."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from msight_bus import Bus, paced
from msight_bus.cli import app
from msight_bus.message import Message
from tests.support.brokers import Backend

_WITHIN = 30.0


def command(backend: Backend, *arguments: str, stdin: bytes | None = None, **variables: str) -> Result:
    """Run a command on a backend."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MSIGHT_")]:
            patch.delenv(name)
        for name, value in {**backend.env, "MSIGHT_PUBSUB_BACKEND": backend.name, **variables}.items():
            patch.setenv(name, value)
        result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def started(line: str, backend: Backend, *, stdin: int | None = None, **variables: str) -> subprocess.Popen[str]:
    """Start a command line in a shell, with the environment of a backend; ``stdin`` as for `subprocess.Popen`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MSIGHT_")}
    environment |= {**backend.env, "MSIGHT_PUBSUB_BACKEND": backend.name, **variables}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line,
        shell=True,
        executable="/bin/bash",
        env=environment,
        stdin=stdin,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


@contextmanager
def in_a_thread(backend: Backend, work: Callable[[Bus, Callable[[], None], threading.Event], object]) -> Iterator[None]:
    """Run ``await work(bus, ready, stop)`` in another thread; enter once ``ready()`` was called."""
    is_ready, stop = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def main() -> None:
        async with backend.connect() as bus:
            await work(bus, is_ready.set, stop)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
            is_ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        if not is_ready.wait(_WITHIN):
            raise TimeoutError("the other thread is not ready")
        yield
    finally:
        stop.set()
        thread.join(_WITHIN)
    if failed:
        raise failed[0]


@contextmanager
def publishing(
    backend: Backend, payloads: Mapping[str, Callable[[int], object]], *, rate: float = 30.0, **options: object
) -> Iterator[dict[int, float]]:
    """Publish a message on each topic ``rate`` times a second; yield the time of each tick, by its number from 1."""
    times: dict[int, float] = {}

    async def work(bus: Bus, ready: Callable[[], None], stop: threading.Event) -> None:
        async for _ in paced(rate):
            if stop.is_set():
                return
            number = len(times) + 1
            times[number] = time.monotonic()
            for topic, make in payloads.items():
                await bus.publish(topic, make(number), **options)
            ready()

    with in_a_thread(backend, work):
        yield times


@contextmanager
def receiving(backend: Backend, topic: str) -> Iterator[Callable[[int], list[Message]]]:
    """Subscribe to a topic; yield a function that waits for a number of messages and returns all."""
    messages: list[Message] = []

    async def work(bus: Bus, ready: Callable[[], None], stop: threading.Event) -> None:
        async with bus.subscribe(topic) as subscription:
            ready()
            while not stop.is_set():
                while (message := subscription.take()) is not None:
                    messages.append(message)
                await asyncio.sleep(0.005)

    def wait_for(count: int) -> list[Message]:
        end = time.monotonic() + _WITHIN
        while len(messages) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(messages)} of {count} messages")
            time.sleep(0.005)
        return messages

    with in_a_thread(backend, work):
        yield wait_for
