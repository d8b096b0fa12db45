"""A subscription without a group: every record of every partition, from its start on. Nothing is committed."""

from __future__ import annotations

import asyncio

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from msight_bus.adapters.kafka.client import start_client
from msight_bus.adapters.kafka.consumer_compat import fetch_lists
from msight_bus.adapters.kafka.feed import KafkaFeed
from msight_bus.adapters.kafka.start import Moment, moment_of, resolve
from msight_bus.adapters.kafka.topics import TopicDirectory

_LOOK_EVERY = 5.0


class LiveViewFeed(KafkaFeed):
    """A subscription without ``group_id``."""

    directory: TopicDirectory
    partitions: int

    async def start(self) -> None:
        """Take all partitions, each from where the request says."""
        await start_client(self._consumer)
        fetch_lists(self._consumer, self)
        starts = await resolve(self._consumer, self._partitions(0, self.partitions), self._request.start)
        self._take({where.partition: at for where, at in starts.items()}, moment_of(self._request.start))
        self._run(self._pump(), "pump")
        self._watch_client()
        self._run(self._look_for_partitions(), "partitions")

    def _partitions(self, first: int, end: int) -> list[TopicPartition]:
        return [TopicPartition(self.topic, partition) for partition in range(first, end)]

    def _take(self, starts: dict[int, int], moment: Moment | None = None) -> None:
        """Assign and seek with nothing awaited in between, so that no position is asked of the broker."""
        self._assignment.update({number: self._partition(number, start, moment) for number, start in starts.items()})
        self._consumer.assign(self._partitions(0, len(self._assignment)))
        self._rewind()
        self._resolved.set()

    async def _look_for_partitions(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                count = await self.directory.partitions(self.topic)
            except (KafkaError, OSError) as error:
                self._complain(error)
                continue
            known = len(self._assignment)
            if count > known:
                self._take(dict.fromkeys(range(known, count), 0))
