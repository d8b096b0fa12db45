"""What is measured: a subscriber and a publisher, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol

from msight_bus.settings import BusSettings

LoopName = Literal["uvloop", "asyncio"]


class Tally:
    """Counts what a subscriber has in hand. The subscriber adds, the harness looks."""

    __slots__ = ("observe", "received", "size")

    def __init__(self, observe: Callable[[bytes], None] | None) -> None:
        """``observe`` takes each payload in a latency run; ``None`` in a throughput run."""
        self.received = 0
        self.size = 0
        self.observe = observe


@dataclass(frozen=True, slots=True)
class Target:
    """Where a side connects.

    Attributes:
        settings: of the broker.
        topic: the topic.
        size: bytes of a payload.
        from_start: whether a subscriber reads a log from its beginning.
        seconds: that the sender is going to send.
    """

    settings: BusSettings
    topic: str
    size: int
    from_start: bool = False
    seconds: float = 0.0


def topic_of(topic: str, number: int) -> str:
    """The ``number``-th topic of a run over many."""
    return f"{topic}.{number}"


class Subscriber(Protocol):
    """The receiving side of a candidate."""

    async def open(self, target: Target) -> None:
        """Connect and subscribe; returns when the broker has confirmed."""

    async def receive(self, tally: Tally) -> None:
        """Take messages for ever, in the candidate's own idiom, and count each one."""

    async def close(self) -> None:
        """Release everything."""


class Publisher(Protocol):
    """The sending side of a candidate."""

    async def open(self, target: Target) -> None:
        """Connect."""

    async def send(self, payload: bytes) -> None:
        """Send one message of a live stream; it leaves at once, waiting for others is wrong here."""

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send ``count`` messages as fast as this candidate can; they need not be confirmed yet."""

    async def flush(self) -> None:
        """Wait until the broker has confirmed what was sent."""

    async def close(self) -> None:
        """Release everything."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a candidate, named so that another process can make it.

    Attributes:
        path: ``"module:class"``.
        options: the class's keyword arguments.
        loop: event loop to run it on.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loop: LoopName = "uvloop"

    def make(self) -> Any:
        """An instance, with its modules imported."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)(**self.options)
