"""Where a subscription begins, as offsets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from aiokafka import AIOKafkaConsumer, TopicPartition

from msight_bus.backends.base import Start
from msight_bus.message import Message

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)
_SINCE = "since "
_CLOCK_STEP = 5e-7
"""Seconds by which times of publishing and a moment are certainly apart, as floats of microseconds and nanoseconds."""


class Moment:
    """A ``datetime`` start. Kafka finds its millisecond; of the records in that one, some are from before the moment.

    Attributes:
        at: POSIX seconds.
        milliseconds: the millisecond in which it lies, since 1970.
    """

    __slots__ = ("at", "milliseconds")

    def __init__(self, start: datetime) -> None:
        self.milliseconds = (start.astimezone(UTC) - _EPOCH) // _MILLISECOND
        self.at = start.timestamp()

    def leaves_out(self, message: Message) -> bool:
        """Whether a message was published in the first millisecond, before the moment; of others' records nobody knows."""
        published_at = message.published_at
        if message.session is None or published_at is None:
            return False
        return self.milliseconds / 1000 - _CLOCK_STEP <= published_at < self.at - _CLOCK_STEP

    @property
    def note(self) -> str:
        """What a group commits with the offset: a member that takes the partition over starts at the same moment."""
        return f"{_SINCE}{self.at!r}"

    @classmethod
    def noted(cls, metadata: str) -> Moment | None:
        """The moment of a committed offset, if one is noted there."""
        if not metadata.startswith(_SINCE):
            return None
        try:
            return cls(datetime.fromtimestamp(float(metadata.removeprefix(_SINCE)), UTC))
        except (ValueError, OverflowError, OSError):  # what another make has committed
            return None


def moment_of(start: Start) -> Moment | None:
    """The moment of a ``datetime`` start."""
    return Moment(start) if isinstance(start, datetime) else None


def check_start(start: Start, topic: str, partitions: int) -> None:
    """Check the partitions that a start names.

    Raises:
        ValueError: the topic has no such partition.
    """
    if isinstance(start, Mapping):
        for partition in start:
            if partition >= partitions:
                raise ValueError(
                    f"start names partition {partition}, and topic {topic!r} has {partitions} partitions, 0 to {partitions - 1}."
                )


async def resolve(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """The offset in each partition at which ``start`` begins.

    Raises:
        KafkaError: the broker did not say.
    """
    if not partitions:
        return {}
    if start == "earliest":
        return dict(await consumer.beginning_offsets(partitions))
    # The end is asked for first: what is published between two questions must lie behind the answer.
    ends: dict[TopicPartition, int] = dict(await consumer.end_offsets(partitions))
    if isinstance(start, datetime):
        # Kafka has a meaning of its own for -1 and -2
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, max(0, Moment(start).milliseconds)))
        return {where: at.offset if (at := found.get(where)) is not None else ends[where] for where in partitions}
    if isinstance(start, Mapping):
        return {where: start.get(where.partition, ends[where]) for where in partitions}
    return ends
