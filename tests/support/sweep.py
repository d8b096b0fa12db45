"""Cancel a coroutine at its 1st, 2nd, ... nth suspension, until it ends before it can be cancelled; or call a function at the nth
suspension of all tasks that it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import pytest

When = Literal["suspended", "woken"]
"""A cancellation comes while the task waits, or in the same turn as what it waited for, whose result is lost then."""

CASES = [
    pytest.param(backend, when, marks=pytest.mark.faults if (backend, when) == ("kafka", "woken") else ())
    for backend in ("memory", "redis", "nats", "kafka")
    for when in get_args(When)
]
"""For ``backend`` and ``when``."""

_MOST = 2000
_CLOSES_WITHIN = 10.0  # seconds for the loop to close what was closed, far more than it takes


class Attempt:
    """One run of a coroutine, cancelled at one suspension.

    Attributes:
        happened: whether it was cancelled; ``False`` if it ended before.
    """

    def __init__(self, nth: int, when: When) -> None:
        self.nth = nth
        self.happened = False
        self._when = when
        self._suspensions = 0

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run the coroutine and cancel it; fail if it swallows the cancellation or raises another error instead."""
        task = asyncio.create_task(self._follow(coroutine))
        await asyncio.wait((task,))
        if self.happened:
            assert task.cancelled(), f"cancelled at suspension {self.nth}, and it ended with {task!r}"
        else:
            task.result()

    async def _follow(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        await _Steps(self, coroutine)

    def suspends(self, on: asyncio.Future[Any] | None) -> None:
        """Handle a suspension of the coroutine: it waits for ``on``, or only yields to the event loop."""
        self._suspensions += 1
        if self._suspensions == self.nth:
            self.happened = True
            task = asyncio.current_task()
            assert task is not None
            if self._when == "woken" and on is not None:
                on.add_done_callback(lambda _: task.cancel())  # comes before the task's own
            else:
                task.cancel()


class _Watching(Protocol):
    def suspends(self, on: asyncio.Future[Any] | None) -> None: ...


class _Steps:
    """Awaits a coroutine step by step."""

    def __init__(self, attempt: _Watching, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._attempt = attempt
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                awaited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as ended:
                return ended.value
            self._attempt.suspends(awaited)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown


def sweep(when: When, *, first: int = 1, step: int = 1) -> Iterator[Attempt]:
    """Iterate attempts, each cancelled ``step`` suspensions later, until one ends before it is cancelled."""
    for nth in range(first, _MOST, step):
        attempt = Attempt(nth, when)
        yield attempt
        if not attempt.happened:
            return
    raise AssertionError(f"it has suspended {_MOST} times and does not end")


class Watching:
    """Counts the suspensions of tasks, and does something at the nth.

    Attributes:
        happened: whether the function was called.
        suspensions: number of suspensions so far.
    """

    def __init__(self, nth: int, do: Callable[[], None]) -> None:
        self.happened = False
        self.suspensions = 0
        self._nth = nth
        self._do = do

    def suspends(self, _: asyncio.Future[Any] | None) -> None:
        """Handle a suspension of a task, which waits or yields to the event loop."""
        self.suspensions += 1
        if self.suspensions == self._nth:
            self.happened = True
            self._do()


_watching: ContextVar[Watching | None] = ContextVar("watching", default=None)


@contextmanager
def watched(nth: int, do: Callable[[], None]) -> Iterator[Watching]:
    """Call ``do`` at the nth suspension of the tasks that are created in this context, and of the tasks that these create."""
    loop = asyncio.get_running_loop()
    former = loop.get_task_factory()
    watching = Watching(nth, do)

    async def follow(coroutine: Coroutine[Any, Any, Any], watching: Watching) -> Any:
        return await _Steps(watching, coroutine)

    def make(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        current = _watching.get()
        return asyncio.Task(coroutine if current is None else follow(coroutine, current), loop=loop, **options)

    loop.set_task_factory(make)
    token = _watching.set(watching)
    try:
        yield watching
    finally:
        _watching.reset(token)
        loop.set_task_factory(former)


class Leftovers:
    """Tasks and sockets that did not exist when this object was created."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._sockets = _sockets()

    async def none(self) -> None:
        """Wait until the loop has closed what was closed; whatever is left then fails."""
        try:
            async with asyncio.timeout(_CLOSES_WITHIN):
                while self._left():
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"left behind: {self._left()}") from None

    def _left(self) -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks() - self._tasks} | (_sockets() - self._sockets)


def _sockets() -> set[str]:
    names = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            names.add(str(descriptor.readlink()))
        except OSError:  # the one that lists them
            continue
    return {name for name in names if name.startswith("socket:")}
