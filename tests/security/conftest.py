"""Secured brokers for the folder, and a watch over every test that nothing secret comes to light."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.canaries import Watch
from tests.support.certificates import Certificates
from tests.support.servers import Secured, certificates, start_secured


@pytest.fixture(scope="session")
def made() -> Certificates:
    """The run's certificates."""
    return certificates()


_started: dict[str, Secured] = {}
_used: list[str] = []


@pytest.fixture(scope="session")
def secured(made: Certificates) -> Iterator[Callable[[str], Secured]]:
    """The run's secured servers of a kind, started on first use."""

    def get(kind: str) -> Secured:
        if kind not in _started:
            _started[kind] = servers = start_secured(kind, made)
            _used.append(
                f"{servers.name}{'' if servers.has_tls else ', which has no TLS, behind a TLS server of this run'}"
            )
        return _started[kind]

    yield get
    while _started:
        _started.popitem()[1].stop()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what this folder ran against."""
    if _used:
        terminalreporter.section("secured brokers")
        for name in _used:
            terminalreporter.write_line(name)


@pytest.fixture(autouse=True)
def watch() -> Iterator[Watch]:
    """Every log of every library at DEBUG; a secret in it fails the test."""
    root = logging.getLogger()
    watch, level = Watch(), root.level
    root.addHandler(watch)
    root.setLevel(logging.DEBUG)
    try:
        yield watch
    finally:
        root.removeHandler(watch)
        root.setLevel(level)
    watch.check()
