"""Taking messages off a subscription."""

from __future__ import annotations

import asyncio


async def take(messages, n, *, within=20.0):
    """The next ``n`` messages."""
    async with asyncio.timeout(within):
        return [await anext(messages) for _ in range(n)]


async def numbers(messages, n):
    return [int(message.payload) for message in await take(messages, n)]
