"""CI runs a test again where a wait exceeded its deadline, as on an overloaded machine, and never where an assertion failed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest


def timed_out(error: BaseException) -> bool:
    """Return whether nothing but an exceeded deadline failed the test.

    A library error that is a `TimeoutError` is an outcome, not a deadline of the tests. An assertion that failed first, while the
    cleanup after it exceeded a deadline, is a failed assertion.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(timed_out(each) for each in error.exceptions)
    return _is_deadline(error) and not any(isinstance(each, AssertionError) for each in _chain(error))


def _is_deadline(error: BaseException) -> bool:
    if isinstance(error, pytest.fail.Exception):
        return str(error).startswith("Timeout (>")  # pytest-timeout
    return type(error) is TimeoutError or isinstance(error, subprocess.TimeoutExpired)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and whatever was raised before it, however it was replaced."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [former for former in (each.__cause__, each.__context__) if former is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


_TIMER: pytest.StashKey[Any] = pytest.StashKey()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In CI, run a test that timed out up to twice more."""
    if os.environ.get("CI"):
        for item in items:
            item.add_marker(pytest.mark.flaky(reruns=2, condition=timed_out))


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Keep the settings of the timer, which pytest-timeout starts once for all attempts."""
    item.stash[_TIMER] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the timer anew for each further attempt."""
    if getattr(item, "execution_count", 1) > 1 and _TIMER in item.stash:
        item.ihook.pytest_timeout_set_timer(item=item, settings=item.stash[_TIMER])
