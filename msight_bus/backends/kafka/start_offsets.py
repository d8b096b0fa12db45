"""Resolves the ``start`` of a subscription to offsets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, KafkaTimeoutError, LeaderNotAvailableError

from msight_bus.backends.base import Position
from msight_bus.backends.kafka.aiokafka_compat import (
    EARLIEST,
    LATEST,
    Client,
    EpochEndRequest,
    offsets_request,
    read_epoch_end,
    read_offsets,
)
from msight_bus.backends.kafka.errors import error_for
from msight_bus.message import Message

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)
_SINCE = "since "
_AGAIN_AFTER = 0.1
"""Seconds between two requests for offsets."""

_OMITTED_AFTER = 1.0
"""Seconds without an offset after which `list_offsets` calls ``omits``; the metadata of one broker can be out of date."""

_CLOCK_STEP = 5e-7
"""Tolerance, in seconds, for comparing float times that have microseconds with times that have nanoseconds."""


class Moment:
    """A ``datetime`` start. Kafka resolves it to a millisecond, so earlier records of that millisecond are left out here.

    Attributes:
        at: POSIX seconds.
        milliseconds: POSIX milliseconds, rounded down.
    """

    __slots__ = ("at", "milliseconds")

    def __init__(self, start: datetime) -> None:
        self.milliseconds = (start.astimezone(UTC) - _EPOCH) // _MILLISECOND
        self.at = start.timestamp()

    def leaves_out(self, message: Message) -> bool:
        """Return whether a message was published before the moment, in its millisecond; false without the bus's header."""
        published_at = message.published_at
        if message.session is None or published_at is None:
            return False
        return self.milliseconds / 1000 - _CLOCK_STEP <= published_at < self.at - _CLOCK_STEP

    @property
    def note(self) -> str:
        """Metadata for a group's committed offset, so that another member starts at the same moment."""
        return f"{_SINCE}{self.at!r}"

    @classmethod
    def noted(cls, metadata: str) -> Moment | None:
        """Return the moment from the metadata of a committed offset; ``None`` if it has none."""
        if not metadata.startswith(_SINCE):
            return None
        try:
            return cls(datetime.fromtimestamp(float(metadata.removeprefix(_SINCE)), UTC))
        except (ValueError, OverflowError, OSError):  # metadata of another client
            return None


def moment_of(start: Position) -> Moment | None:
    """Return the moment of a ``datetime`` start; ``None`` for other starts."""
    return Moment(start) if isinstance(start, datetime) else None


def check_start(start: Position, topic: str, partitions: int) -> None:
    """Check the partitions of an offset mapping.

    Raises:
        ValueError: ``topic`` has no partition of that number.
    """
    if isinstance(start, Mapping):
        for named, partition in start:
            if named == topic and partition >= partitions:
                raise ValueError(
                    f"start names partition {partition}; topic {topic!r} has {partitions} partitions, 0 to {partitions - 1}."
                )


async def resolve(
    client: Client,
    partitions: list[TopicPartition],
    start: Position,
    isolation: int,
    omits: Callable[[TopicPartition], bool],
) -> dict[TopicPartition, int]:
    """Return the start offset of each partition; ``omits``: see `list_offsets`.

    Raises:
        KafkaError: the brokers refused, or did not answer within the request timeout.
    """
    if start == "earliest":
        return await list_offsets(client, partitions, EARLIEST, isolation, omits)
    # Get the end first: records published between the two requests must be after the start offset.
    ends = await list_offsets(client, partitions, LATEST, isolation, omits)
    if isinstance(start, datetime):
        # -1 and -2 are LATEST and EARLIEST
        found = await list_offsets(client, list(ends), max(0, Moment(start).milliseconds), isolation, omits)
        return {where: offset if offset >= 0 else ends[where] for where, offset in found.items()}
    if isinstance(start, Mapping):
        return {where: start.get(where, end) for where, end in ends.items()}
    return ends


async def list_offsets(
    client: Client,
    partitions: list[TopicPartition],
    at: int,
    isolation: int,
    omits: Callable[[TopicPartition], bool] = lambda _: False,
) -> dict[TopicPartition, int]:
    """Return the first offset of each partition at or after a time.

    Args:
        client: the connections to use.
        partitions: the partitions to ask for.
        at: milliseconds since 1970, `EARLIEST` or `LATEST`.
        isolation: `READ_COMMITTED` or `READ_UNCOMMITTED`, which decides where `LATEST` is.
        omits: called with a partition without an answer for `_OMITTED_AFTER` seconds; returns whether to leave it out.

    Returns:
        The offsets; -1 for partitions without a record at or after the time.

    Raises:
        KafkaError: the brokers refused, or did not answer within the request timeout.
    """
    found: dict[TopicPartition, int] = {}
    answered_at = asyncio.get_running_loop().time()
    problem: KafkaError = LeaderNotAvailableError("no leader is known")
    try:
        async with asyncio.timeout(client.request_timeout) as deadline:
            while missing := [where for where in partitions if where not in found]:
                by_node: dict[int | None, dict[TopicPartition, int]] = {}
                for where in missing:
                    by_node.setdefault(client.leader(where), {})[where] = at
                for node, times in by_node.items():
                    try:
                        if node is None:
                            where = next(iter(times))
                            raise LeaderNotAvailableError(f"{where.topic}, partition {where.partition}")
                        for where, code, offset in read_offsets(
                            await client.send(node, offsets_request(times, isolation))
                        ):
                            if not code:
                                found[where] = offset
                                continue
                            problem = error_for(code)(where.topic)
                            if not problem.retriable:
                                raise problem
                    except KafkaError as error:  # of one broker: the others are asked too
                        if not error.retriable:
                            raise
                        problem = error
                now = asyncio.get_running_loop().time()
                if len(found) > len(partitions) - len(missing):  # a broker needs several seconds for many new topics
                    answered_at = now
                    deadline.reschedule(now + client.request_timeout)
                elif now - answered_at >= _OMITTED_AFTER:
                    partitions = [where for where in partitions if where in found or not omits(where)]
                if len(found) < len(partitions):
                    await client.update_metadata()
                    await asyncio.sleep(_AGAIN_AFTER)
    except TimeoutError as error:
        raise KafkaTimeoutError(f"no offsets within {client.request_timeout:g} s: {problem}") from error
    return found


async def end_of_epoch(client: Client, where: TopicPartition, epoch: int) -> int | None:
    """Return the offset at which the records of a leader epoch and of the epochs before it end.

    Returns:
        The offset; ``None`` if the leader does not report it.

    Raises:
        KafkaError: the leader refused or did not respond.
    """
    node = client.leader(where)
    if node is None or epoch < 0:
        return None
    try:
        code, end = read_epoch_end(await client.send(node, EpochEndRequest(where, epoch)))
    except IncompatibleBrokerVersion:
        return None
    if code:
        raise error_for(code)(where.topic)
    return end if end >= 0 else None
