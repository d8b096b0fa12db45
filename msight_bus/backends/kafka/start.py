"""Where a subscription begins, as offsets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError, LeaderNotAvailableError

from msight_bus.backends.base import Start
from msight_bus.backends.kafka.aiokafka_compat import EARLIEST, LATEST, Client, offsets_request, read_offsets
from msight_bus.backends.kafka.errors import error_for
from msight_bus.message import Message

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)
_SINCE = "since "
_AGAIN_AFTER = 0.1
"""Seconds until offsets are asked for again."""

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
    client: Client, partitions: list[TopicPartition], start: Start, isolation: int
) -> dict[TopicPartition, int]:
    """The offset in each partition at which ``start`` begins.

    Raises:
        KafkaError: the broker did not say.
    """
    if start == "earliest":
        return await list_offsets(client, partitions, EARLIEST, isolation)
    # The end is asked for first: what is published between two questions must lie behind the answer.
    ends = await list_offsets(client, partitions, LATEST, isolation)
    if isinstance(start, datetime):
        # Kafka has a meaning of its own for -1 and -2
        found = await list_offsets(client, partitions, max(0, Moment(start).milliseconds), isolation)
        return {where: found[where] if found[where] >= 0 else ends[where] for where in partitions}
    if isinstance(start, Mapping):
        return {where: start.get(where.partition, ends[where]) for where in partitions}
    return ends


async def list_offsets(
    client: Client, partitions: list[TopicPartition], at: int, isolation: int
) -> dict[TopicPartition, int]:
    """The first offset of each partition at or behind a time.

    Args:
        at: milliseconds since 1970, `EARLIEST` or `LATEST`; the end is that for readers of ``isolation``.

    Returns:
        The offsets; -1 where no record is so young.

    Raises:
        KafkaError: the brokers refuse, or did not answer within the request timeout.
    """
    found: dict[TopicPartition, int] = {}
    problem: KafkaError = LeaderNotAvailableError("no leader is known")
    try:
        async with asyncio.timeout(client.request_timeout):
            while missing := [where for where in partitions if where not in found]:
                by_node: dict[int | None, dict[TopicPartition, int]] = {}
                for where in missing:
                    by_node.setdefault(client.leader(where), {})[where] = at
                try:
                    for node, times in by_node.items():
                        if node is None:
                            raise LeaderNotAvailableError(next(iter(times)).topic)
                        for where, code, offset in read_offsets(
                            await client.send(node, offsets_request(times, isolation))
                        ):
                            if code:
                                raise error_for(code)(where.topic)
                            found[where] = offset
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    problem = error
                    await client.update_metadata()
                    await asyncio.sleep(_AGAIN_AFTER)
    except TimeoutError as error:
        raise KafkaTimeoutError(f"no offsets within {client.request_timeout:g} s: {problem}") from error
    return found
