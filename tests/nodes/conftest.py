from __future__ import annotations

import pytest

from tests.support.brokers import Backend, make_backend


@pytest.fixture
def memory() -> Backend:
    """The in-process broker."""
    return make_backend("memory")
