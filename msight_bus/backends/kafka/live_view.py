"""A subscription without a group: every record of every partition, from its start on. Nothing is committed."""

from __future__ import annotations

from aiokafka import TopicPartition

from msight_bus.backends.kafka.consumer_compat import fetch_lists, start_consumer
from msight_bus.backends.kafka.feed import KafkaFeed
from msight_bus.backends.kafka.start import Moment, moment_of, resolve
from msight_bus.backends.kafka.topics import TopicDirectory


class LiveViewFeed(KafkaFeed):
    """A subscription without ``group_id``."""

    directory: TopicDirectory
    partitions: int

    async def start(self) -> None:
        """Take all partitions, each from where the request says."""
        await start_consumer(self._consumer)
        fetch_lists(self._consumer, self)
        await self._identify()
        starts = await resolve(self._consumer, self._partitions(0, self.partitions), self._selection.start)
        self._take({where.partition: at for where, at in starts.items()}, moment_of(self._selection.start))
        self._run(self._pump(), "pump")
        self._watch_client()
        self._run(self._look_at_topic(), "topic")

    def _partitions(self, first: int, end: int) -> list[TopicPartition]:
        return [TopicPartition(self.topic, partition) for partition in range(first, end)]

    def _take(self, starts: dict[int, int], moment: Moment | None = None) -> None:
        """Assign and seek with nothing awaited in between, so that no position is asked of the broker."""
        self._assignment.update({number: self._partition(number, start, moment) for number, start in starts.items()})
        self._consumer.assign(self._partitions(0, len(self._assignment)))
        self._rewind()
        self._resolved.set()

    async def _look(self) -> None:
        if await self._identify():
            assert self._identity is not None
            self._let_go()
            self._assignment = {}
            self._take(dict.fromkeys(range(self._identity.partitions), 0))
            return
        count = await self.directory.partitions(self.topic)
        known = len(self._assignment)
        if count > known:
            self._take(dict.fromkeys(range(known, count), 0))
