"""Secured brokers for the folder, and a watch over every test that nothing secret comes to light."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from tests.security.canaries import Watch
from tests.security.certificates import Certificates, make_certificates
from tests.security.servers import Secured, start_secured


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The run's certificates."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def secured(made: Certificates) -> Iterator[Callable[[str], Secured]]:
    """The run's secured servers of a kind, started on first use."""
    started: dict[str, Secured] = {}

    def get(kind: str) -> Secured:
        if kind not in started:
            started[kind] = start_secured(kind, made)
        return started[kind]

    yield get
    for servers in started.values():
        servers.stop()


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
