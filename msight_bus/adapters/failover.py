"""Trying the nodes of a cluster one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turn(candidates: Sequence[T], within: float) -> Iterator[tuple[T, float]]:
    """Each candidate with the seconds it may take: what is left of ``within``, shared with those behind it.

    A node that hangs takes its share and no more; one that refuses at once leaves its share to the others.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    for tried, candidate in enumerate(candidates):
        yield candidate, max(0.0, end - loop.time()) / (len(candidates) - tried)
