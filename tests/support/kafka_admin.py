"""A client that makes Kafka topics and changes them."""

from __future__ import annotations

from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient

from msight_bus.adapters.kafka.client import client_options


@asynccontextmanager
async def administering(kafka):
    client = AIOKafkaAdminClient(**client_options(kafka.settings()))
    await client.start()
    yield client
    await client.close()
