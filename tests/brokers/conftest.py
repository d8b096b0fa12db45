"""Brokers for one test each, and ways to wait for what another process does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from msight_bus import brokers
from msight_bus.brokers import running
from tests.support.brokers import skip_without


@pytest.fixture
def require_broker() -> Callable[[brokers.KindName], None]:
    """Skip a test where no broker of a kind can be had; in CI that is a failure."""

    def require(kind: brokers.KindName) -> None:
        with skip_without(kind):
            running.find(kind, print)

    return require


@pytest.fixture
def start_broker(
    require_broker: Callable[[brokers.KindName], None],
) -> Iterator[Callable[..., brokers.RunningBroker]]:
    """``brokers.start``, stopped after the test; a visible skip, or in CI a failure, where there is none."""
    with ExitStack() as stack:

        def start(kind: brokers.KindName, **options: Any) -> brokers.RunningBroker:
            require_broker(kind)
            return stack.enter_context(brokers.start(kind, **options))

        yield start


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    """Whether a process has ended. One that nobody has waited for yet is over as well."""

    def gone(pid: int) -> bool:
        ps = ["ps", "-o", "stat=", "-p", str(pid)]
        listed = subprocess.run(ps, check=False, capture_output=True, text=True)
        return listed.stdout.strip()[:1] in ("", "Z")

    return gone
