"""The version of a NATS server."""

from __future__ import annotations

import asyncio
import json

from msight_bus.errors import quoted
from msight_bus.settings import BusSettings

_LONGEST = 65_536


async def version(settings: BusSettings) -> str | None:
    """Return the version from the INFO with which the first server begins; ``None`` where it begins with TLS."""
    server = settings.nats.servers[0]
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=_LONGEST)
    try:
        operation, _, info = (await reader.readline()).partition(b" ")
    finally:
        writer.transport.abort()
    found = json.loads(info).get("version") if operation == b"INFO" else None
    return quoted(found, 40) if isinstance(found, str) else None
