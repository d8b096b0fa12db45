"""The consumer of a subscription without a group: all partitions, from the start offsets on, without commits."""

from __future__ import annotations

from aiokafka import TopicPartition

from msight_bus.backends.kafka.consumer import KafkaConsumer
from msight_bus.backends.kafka.start_offsets import moment_of


class ManualAssignmentConsumer(KafkaConsumer):
    """The consumer of a subscription without ``group_id``."""

    async def start(self) -> None:
        """Assign all partitions, with the start offsets of the selection, and start to fetch.

        Raises:
            KafkaError: the topic cannot be read.
        """
        await self._connect()
        await self._identify()
        starts = await self._resolve(self._existing(), self._selection.start)
        moment = moment_of(self._selection.start)
        self._fetcher.assign({where: self._partition(where, at, moment) for where, at in starts.items()})
        self._begin_fetching(self.client.background_task)
        self._run(self._watch_topic(), "topic")

    def _existing(self) -> list[TopicPartition]:
        if self._identity is None:
            return self._all_partitions()
        return [TopicPartition(self.topic, number) for number in range(self._identity.partitions)]

    async def _check_topic(self) -> None:
        if await self._identify():
            self._fetcher.assign({})
        new = {where: self._partition(where, 0) for where in self._existing() if where not in self.partitions}
        if new:
            self._fetcher.assign(self.partitions | new)
