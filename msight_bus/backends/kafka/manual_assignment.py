"""The consumer of a subscription without a group: all partitions, from the start offsets on, without commits."""

from __future__ import annotations

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
        # `topics` leaves out a topic while one of its partitions has no leader.
        partitions = sorted({*self.topics.partitions(), *self._all_partitions()})
        starts = await self._resolve(partitions, self._selection.start)
        moment = moment_of(self._selection.start)
        self._fetcher.assign({where: self._partition(where, at, moment) for where, at in starts.items()})
        self._begin_fetching(self.client.background_task)
        self._run(self._watch_topics(), "topics")

    async def _check_topics(self) -> None:
        recreated = await self._find_recreated()
        self._track()
        former = {
            where: each
            for where, each in self.partitions.items()
            if where.topic in self.topics and where.topic not in recreated
        }
        new = [where for where in self.topics.partitions() if where not in former]
        if len(former) < len(self.partitions):  # first: an error below must not leave positions in a deleted topic
            self._fetcher.assign(former)
        if new:
            starts = await self._resolve(new, "earliest")
            self._fetcher.assign(former | {where: self._partition(where, at) for where, at in starts.items()})
