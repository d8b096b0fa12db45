"""Brokers that no other test uses: `doctor` looks at all nodes and groups of a broker, also at those of other tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.brokers import Backend, make_backend, start_broker


def _alone(kind: str) -> Iterator[Backend]:
    broker = start_broker(kind)
    try:
        yield make_backend(kind, broker)
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def kafka() -> Iterator[Backend]:
    yield from _alone("kafka")


@pytest.fixture(scope="module")
def nats() -> Iterator[Backend]:
    yield from _alone("nats")
