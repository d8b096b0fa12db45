"""The topics of one subscription: those given by name, and those that match a pattern."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, UnknownTopicOrPartitionError

from msight_bus.backends.base import Selection
from msight_bus.backends.kafka.aiokafka_compat import Client, MetadataRequest, TopicIdentitiesRequest, TopicIdentity
from msight_bus.backends.kafka.errors import REFUSED, error_for
from msight_bus.errors import TopicError
from msight_bus.patterns import named
from msight_bus.topics import check_topic

logger = logging.getLogger("msight_bus")

_ANSWER_WITHIN = 3.0
"""Maximum seconds of one check; a group member waits for it in each rebalance."""

_GONE_AFTER = 2
"""Consecutive checks without the topic after which it counts as deleted; the metadata of one broker can be out of date."""

_REMEMBERED = 1000
"""Maximum number of deleted topics that matched a pattern and are kept, to detect that they are created again."""

_NAMED = 10
"""Maximum number of topics that a log line names."""

Found = Mapping[str, TopicIdentity | type[KafkaError]]


@dataclass(slots=True)
class _Topic:
    """One topic.

    Attributes:
        exists: whether the topic is read; false for a deleted topic.
        is_later: whether the topic was found after the first check, or created again, and is read from its earliest record on.
        identity: id and number of partitions; ``None`` until known.
        misses: number of consecutive checks that did not find the topic.
    """

    exists: bool
    is_later: bool
    identity: TopicIdentity | None = None
    misses: int = 0


class SelectedTopics:
    """The topics of one subscription, as the last `check` found them.

    A pattern matches the topics that the user may describe. A matching topic is excluded, with one WARNING and for good, if its
    name is not valid on the bus or if the user may not read it (`leave_out`), so that topics of other programs do not end the
    subscription. Messages of an excluded topic are not counted.
    """

    def __init__(self, selection: Selection, client: Client) -> None:
        """
        Args:
            selection: the topics and patterns.
            client: the connections of the subscription, on which its records are fetched too.
        """
        self._selection = selection
        self._client = client
        self._given = frozenset(selection.topics)
        self._topics = {name: _Topic(exists=True, is_later=False) for name in selection.topics}
        self._left_out: set[str] = set()
        self._seen: set[str] = set()
        self._is_first = True

    @property
    def names(self) -> list[str]:
        """The topics to read: those given by name, even while they do not exist, and those that match."""
        return [name for name, topic in self._topics.items() if topic.exists or name in self._given]

    @property
    def are_missing(self) -> bool:
        """Whether a topic that is given by name was not found."""
        return any(self._topics[name].misses for name in self._given)

    def partitions(self) -> list[TopicPartition]:
        """Return the partitions of the topics that exist."""
        counts = [
            (name, topic.identity.partitions) for name, topic in self._topics.items() if topic.exists and topic.identity
        ]
        return [TopicPartition(name, partition) for name, count in counts for partition in range(count)]

    def __contains__(self, name: str) -> bool:
        """Return whether a topic is read, or was read and can be created again."""
        return name in self._topics

    def is_given(self, name: str) -> bool:
        """Return whether a topic is given by name."""
        return name in self._given

    def is_later(self, name: str) -> bool:
        """Return whether a topic was found after the first check or created again: it is read from its earliest record on."""
        topic = self._topics.get(name)
        return topic is None or topic.is_later

    def exists(self, name: str) -> bool:
        """Return whether a topic is not known to be deleted."""
        topic = self._topics.get(name)
        return topic is not None and topic.exists

    def was_found(self, name: str) -> bool:
        """Return whether the last check found a topic."""
        topic = self._topics.get(name)
        return topic is not None and topic.exists and not topic.misses

    def leave_out(self, name: str, reason: str) -> None:
        """Exclude a topic that matches a pattern."""
        logger.warning("Topic %r matches %s and is not read: %s", name, self._selection.name, reason)
        self._left_out.add(name)
        self._topics.pop(name, None)

    async def check(self) -> set[str]:
        """Look the topics up and return those that were deleted and created again.

        Raises:
            KafkaError: the user may not describe a topic that is given by name.
        """
        found = await self._look_up()
        if found is None:
            return set()
        self._match(found)
        self._is_first = False
        before = [name for name, topic in self._topics.items() if topic.exists]
        recreated = {name for name, topic in self._topics.items() if self._update(name, topic, found.get(name))}
        _warn("deleted; no messages until created again", [name for name in before if not self._topics[name].exists])
        _warn("deleted and created again; consuming from the start", sorted(recreated))
        self._forget()
        return recreated

    async def _look_up(self) -> Found | None:
        """Return the topics by name; ``None`` if no broker responded."""
        wanted = None if self._selection.patterns else list(self._selection.topics)
        try:
            request = TopicIdentitiesRequest(wanted)
            found: Found = (await self._client.ask(request, within=_ANSWER_WITHIN, shared=True)).topics
        except IncompatibleBrokerVersion:  # brokers before Kafka 2.8 have no topic ids
            response = await self._client.ask(MetadataRequest(wanted, allow_auto_topic_creation=False))
            return {
                name: error_for(code) if code else TopicIdentity(b"", len(partitions))
                for code, name, *_, partitions in response.topics
            }
        except REFUSED:
            raise
        except (KafkaError, OSError) as error:
            logger.debug("No identity of %s: %s", self._selection.name, error)
            return None
        return found

    def _match(self, found: Found) -> None:
        for name in sorted(found.keys() - self._seen):
            if name in self._topics or name in self._left_out or self._selection.owner(name) is None:
                continue
            try:
                check_topic(self._selection.topic_map.topic_of(name))
            except TopicError as error:
                self.leave_out(name, str(error))
            else:
                self._topics[name] = _Topic(exists=False, is_later=not self._is_first)
        self._seen = set(found)

    def _update(self, name: str, topic: _Topic, found: TopicIdentity | type[KafkaError] | None) -> bool:
        """Note what was found of a topic and return whether it is known to have been created again."""
        if found is None or found is UnknownTopicOrPartitionError:
            topic.misses += 1
            topic.exists = topic.exists and topic.misses < _GONE_AFTER
            return False
        if not isinstance(found, TopicIdentity):
            if found in REFUSED:
                raise found(name)
            return False  # for example, a partition without a leader
        topic.misses, topic.exists = 0, True
        before, topic.identity = topic.identity, found
        if before is None or before.id == found.id:
            return False
        topic.is_later = True
        return True

    def _forget(self) -> None:
        gone = [name for name, topic in self._topics.items() if topic.misses >= _GONE_AFTER and name not in self._given]
        for name in gone[: max(0, len(gone) - _REMEMBERED)]:
            del self._topics[name]


def _warn(event: str, topics: list[str]) -> None:
    """Log one WARNING for all ``topics``; ``event``: what happened to them, as a participle."""
    if len(topics) == 1:
        logger.warning("Topic %s was %s.", topics[0], event)
    elif topics:
        logger.warning("%d topics were %s: %s", len(topics), event, named(topics, _NAMED))
