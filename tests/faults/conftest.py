"""Gives each fault test its book, and prints all books at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.brokers import Backend, make_backend
from tests.support.rig import Book

_books: dict[str, dict[str, Any]] = {}


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Backend:
    """The run's broker of the kind that the test names."""
    return make_backend(request.param)


@pytest.fixture
def book(request: pytest.FixtureRequest) -> Iterator[Book]:
    """Where the test keeps its figures; a thread or descriptor that it leaves behind fails it."""
    if "target" in request.fixturenames:
        request.getfixturevalue("target")  # the broker's own descriptors come first
    kept = Book()
    yield kept
    figures = _books[request.node.name] = kept.close()
    assert not figures["left over"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The ledgers, for those who want to know (``-v``)."""
    if config.option.verbose > 0 and _books:
        terminalreporter.section("ledgers")
        for name, figures in _books.items():
            terminalreporter.write_line(f"{name}: " + "; ".join(f"{key} {value}" for key, value in figures.items()))
