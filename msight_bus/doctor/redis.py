"""Checks of Redis and its servers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from msight_bus.backends.redis.connector import RedisConnector
from msight_bus.doctor.evidence import Evidence, Finding
from msight_bus.settings import BusSettings

_LIMIT = re.compile(rb"\bpubsub (\d{1,18}) ")
_FRAMES = 4
"""Messages that fit into the output buffer of a subscriber that is slow for a moment."""


async def output_buffer(evidence: Evidence) -> AsyncIterator[Finding]:
    """Find a ``client-output-buffer-limit pubsub`` that is too small for the messages."""
    reply = await RedisConnector(evidence.settings).ask("CONFIG", "GET", "client-output-buffer-limit")
    found = _LIMIT.search(reply[1]) if isinstance(reply, list) and len(reply) > 1 else None
    needed = _FRAMES * evidence.largest
    command = f'redis-cli CONFIG SET client-output-buffer-limit "pubsub {2 * needed} {needed} 60"'
    if found is None:
        problem = "Redis does not permit CONFIG GET, so client-output-buffer-limit pubsub is unknown."
        yield Finding(
            "output buffer", problem, "Permit the command: `redis-cli ACL SETUSER USER +config|get`.", fault=False
        )
    elif 0 < int(found[1]) < needed:
        yield Finding(
            "output buffer",
            f"Redis disconnects a subscriber with {int(found[1]):,} bytes in its output buffer (client-output-buffer-limit "
            f"pubsub); the largest message has {evidence.largest:,} bytes.",
            f"Set a larger limit: `{command}`, and in redis.conf for the next start.",
        )


async def version(settings: BusSettings) -> str | None:
    """Return the name and version of the server."""
    reply = await RedisConnector(settings).ask("INFO", "server")
    found = re.findall(rb"(redis|valkey)_version:([\w.]+)", reply) if isinstance(reply, bytes) else []
    return b" ".join(found[-1]).decode() if found else None  # Valkey reports both


async def topics(settings: BusSettings) -> list[str]:
    """Return the channels that have subscribers."""
    reply = await RedisConnector(settings).ask("PUBSUB", "CHANNELS")
    return (
        [name.decode(errors="replace") for name in reply if isinstance(name, bytes)] if isinstance(reply, list) else []
    )
