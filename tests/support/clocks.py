"""Set the wall clock of this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def clock_behind(seconds: int) -> Iterator[None]:
    """Set the wall clock of this process back; the clock of the event loop is not changed."""
    now, now_ns = time.time, time.time_ns
    wrong = {now: lambda: now() - seconds, now_ns: lambda: now_ns() - seconds * 10**9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", wrong[now])
        patch.setattr(time, "time_ns", wrong[now_ns])
        for module in [module for name, module in sys.modules.items() if name.startswith("msight_bus.")]:
            for name, value in list(vars(module).items()):
                if value is now or value is now_ns:  # modules that import the function by name
                    patch.setattr(module, name, wrong[value])
        yield
