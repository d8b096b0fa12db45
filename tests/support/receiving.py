"""Receive messages from a subscription."""

from __future__ import annotations

import asyncio

from msight_bus import Bus


async def take(messages, n, *, within=20.0):
    """Return the next ``n`` messages."""
    async with asyncio.timeout(within):
        return [await anext(messages) for _ in range(n)]


async def numbers(messages, n):
    return [int(message.payload) for message in await take(messages, n)]


def lose(bus: Bus, topic: str) -> None:
    """Increment the sequence of ``topic`` without a message, which simulates a loss; Redis, NATS and memory."""
    published = bus.core.backend._topics.known(topic)
    assert published is not None
    published.counter.sequence += 1
