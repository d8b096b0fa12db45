"""Record the committed offsets of a Kafka group, with a separate client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from msight_bus.backends.kafka.client import client_options
from tests.support.brokers import Backend
from tests.support.ledger import Ledger

_EVERY = 0.1


@asynccontextmanager
async def watched_commits(backend: Backend, topic: str, group: str, ledger: Ledger) -> AsyncIterator[None]:
    """Record the group's committed offsets in the ledger while the body runs, also across outages of the broker."""
    watching = asyncio.create_task(_watch(backend, topic, group, ledger), name=f"watch on {group}")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


async def _watch(backend: Backend, topic: str, group: str, ledger: Ledger) -> None:
    while True:
        admin = AIOKafkaAdminClient(**client_options(backend.settings(MSIGHT_CONNECT_TIMEOUT="3")))
        try:
            await admin.start()
            while True:
                async with asyncio.timeout(3):
                    found = await admin.list_consumer_group_offsets(group)
                for where, committed in found.items():
                    if where.topic == topic:
                        ledger.committed(where.partition, committed.offset)
                await asyncio.sleep(_EVERY)
        except (KafkaError, OSError, TimeoutError):
            await asyncio.sleep(_EVERY)  # the broker is down
        finally:
            await admin.close()
