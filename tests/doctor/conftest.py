"""Brokers of this process alone: `doctor` looks at all nodes and groups of a broker, also at those of other tests."""

from __future__ import annotations

import pytest

from tests.support.brokers import Backend, make_backend_alone


@pytest.fixture
def kafka() -> Backend:
    return make_backend_alone("kafka")


@pytest.fixture
def nats() -> Backend:
    return make_backend_alone("nats")
