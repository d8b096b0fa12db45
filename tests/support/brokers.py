"""Real brokers, each started once per run, and the backends that connect to them.

In a parallel run, the process that distributes the tests starts the brokers, and its workers ask for their addresses.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import pytest

import msight_bus
from msight_bus import brokers
from msight_bus.events import BusEvent
from msight_bus.settings import BusSettings
from tests.support import sharing
from tests.support.kafka_classes import share_classes

BACKENDS = ["memory", "redis", "nats", "kafka"]
T = TypeVar("T")
GROUP = f"g{os.getpid()}"
"""A consumer group that no other process uses."""

_SHARED = "TESTS_SHARE_BROKERS_OF"  # in the environment of workers
_started: dict[str, brokers.RunningBroker] = {}
_locks: defaultdict[str, Lock] = defaultdict(Lock)
_CONFIG = {
    "kafka": [  # a killed member and a rebalance are detected sooner than by default
        "group.min.session.timeout.ms=500",
        "log.cleaner.backoff.ms=200",  # compaction
        *(f"group.consumer.{least}session.timeout.ms=3000" for least in ("min.", "")),
        *(f"group.consumer.{least}heartbeat.interval.ms=500" for least in ("min.", "")),
    ]
}


@contextmanager
def skip_without(kind: str) -> Iterator[None]:
    """Skip the test if no broker of this kind is found or downloaded; fail in CI."""
    try:
        yield
    except brokers.NoBrokerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no {kind} broker on this machine: {error}")


def start_broker(kind: str, config: Sequence[str] = ()) -> brokers.RunningBroker:
    """Start a broker for one test."""
    with skip_without(kind):
        return _start(kind, config)
    raise AssertionError("not reached")


def _start(kind: str, config: Sequence[str] = ()) -> brokers.RunningBroker:
    return brokers.start(kind, config=[*_CONFIG.get(kind, ()), *config])  # type: ignore[arg-type]


@dataclass(frozen=True)
class SharedBroker:
    """The run's broker of one kind; no test stops or suspends it."""

    kind: str
    name: str
    version: str
    is_stand_in: bool
    port: int
    env: Mapping[str, str]


@cache
def running_broker(kind: str) -> SharedBroker:
    """Return the run's broker, started on first use."""
    with skip_without(kind):
        return once_a_run(partial(_describe, kind))
    raise AssertionError("not reached")


def once_a_run(make: Callable[[], T]) -> T:
    """Return what ``make`` returns in the process that distributes the tests, or in this one if it runs them alone."""
    address = os.environ.get(_SHARED)
    return sharing.ask(address, make) if address else make()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class BreakableBroker(SharedBroker):
    """A broker that one test at a time has."""

    number: int = 0

    def freeze(self) -> None:
        """Suspend the server (SIGSTOP)."""
        once_a_run(partial(_freeze, self.kind, self.number))

    def thaw(self) -> None:
        """Resume the server (SIGCONT)."""
        once_a_run(partial(_thaw, self.kind, self.number))


def breakable_broker(kind: str) -> BreakableBroker:
    """Return a broker that no other test has until this one ends; the next test that needs one can have the same."""
    if kind not in _lent:
        number = next(number for number in itertools.count() if _lock(f"breakable {kind} {number}"))
        with skip_without(kind):
            _lent[kind] = once_a_run(partial(_breakable, kind, number))
    return _lent[kind]


_lent: dict[str, BreakableBroker] = {}
_lent_locks = ExitStack()


def give_back() -> None:
    """Let other tests have the breakable brokers of the test that has ended."""
    _lent.clear()
    _lent_locks.close()


def _lock(name: str) -> bool:
    """Return whether this process has the lock, which it keeps until `give_back`."""
    address = os.environ.get(_SHARED)
    if not address:
        return True
    file = _lent_locks.enter_context(Path(address).with_name(name).open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _numbered(kind: str, number: int) -> brokers.RunningBroker:
    return keep(f"{kind} {number}", partial(_start, kind))


def _breakable(kind: str, number: int) -> BreakableBroker:
    return BreakableBroker(**vars(_described(_numbered(kind, number))), number=number)


def _freeze(kind: str, number: int) -> None:
    _numbered(kind, number).freeze()


def _thaw(kind: str, number: int) -> None:
    _numbered(kind, number).thaw()


def keep(name: str, start: Callable[[], brokers.RunningBroker]) -> brokers.RunningBroker:
    """Return this process's broker of that name, started on first use and stopped at the end of the run."""
    with _locks[name]:
        if name not in _started:
            _started[name] = start()
        return _started[name]


def _describe(kind: str) -> SharedBroker:
    return _described(keep(kind, partial(_start, kind)))


def _described(broker: brokers.RunningBroker) -> SharedBroker:
    return SharedBroker(broker.kind, broker.name, broker.version, broker.is_stand_in, broker.port, dict(broker.env))


def share_brokers() -> None:
    """Let the workers that this process is going to start use its brokers."""
    share_classes()
    os.environ[_SHARED] = sharing.serve()


@contextmanager
def topics_of_examples(backend: str) -> Iterator[None]:
    """Wait until no other process runs an example on this broker, because the topics have fixed names."""
    with nullcontext() if backend == "memory" else alone(backend):
        yield


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until no other process of a parallel run is in a block of this name."""
    if address := os.environ.get(_SHARED):
        with Path(address).with_name(name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:
        yield


def stop_brokers() -> None:
    """Stop the brokers of this process."""
    for broker in _started.values():
        broker.stop()


def describe_brokers() -> list[str]:
    """Return a line for each broker of this process."""
    stand_in = " - a stand-in, not Apache Kafka"
    return [f"{b.kind}: {b.name} {b.version}{stand_in if b.is_stand_in else ''}" for b in _started.values()]


@dataclass(frozen=True)
class Backend:
    """One backend of the contract suite."""

    name: str
    env: dict[str, str]

    def settings(self, **variables: str) -> BusSettings:
        """Return settings with the address of the run's broker."""
        return BusSettings(environ={**self.env, "MSIGHT_PUBSUB_BACKEND": self.name, **variables})

    @asynccontextmanager
    async def connect(self, *, events: list[BusEvent] | None = None, **variables: str) -> AsyncIterator[msight_bus.Bus]:
        """Return a connected bus."""
        on_event = events.append if events is not None else lambda _: None
        async with msight_bus.connect(self.settings(**variables), on_event=on_event) as bus:
            yield bus


def make_backend(name: str, broker: brokers.RunningBroker | SharedBroker | None = None) -> Backend:
    """Return a backend of ``broker``; default: the run's broker."""
    return Backend(name, {} if name == "memory" else dict((broker or running_broker(name)).env))


def make_backend_alone(kind: str) -> Backend:
    """Return a backend of a broker that no other test uses meanwhile."""
    return make_backend(kind, breakable_broker(kind))


def free_ports(count: int) -> list[int]:
    """Return ports on which no program listens, each once."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(brokers.free_port())
    return list(ports)


def backend_at(kind: str, *ports: int) -> Backend:
    """Return Redis or NATS settings with servers at ``ports`` and a user."""
    if kind == "nats":
        where = {"MSIGHT_NATS_SERVERS": ",".join(f"nats://127.0.0.1:{port}" for port in ports)}
        return Backend(kind, {**where, "MSIGHT_NATS_USERNAME": "cam", "MSIGHT_NATS_PASSWORD": "secret word"})
    prefix = "MSIGHT_REDIS_MESSAGE_BROKER_"
    nodes = ",".join(f"127.0.0.1:{port}" for port in ports)
    where = {f"{prefix}USE_CLUSTER": "true", f"{prefix}CLUSTER_NODES": nodes}
    return Backend(kind, {**where, f"{prefix}USERNAME": "cam", f"{prefix}PASSWORD": "secret word"})
