"""Waiting in a test that is not a coroutine."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Wait until the condition holds; raise `TimeoutError` after `within` seconds."""
    limit = time.monotonic() + within
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"the condition did not hold within {within} s")
        time.sleep(0.01)
