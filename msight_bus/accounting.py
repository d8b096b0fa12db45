"""What a subscriber missed, by the sequences that publishers stamp on their messages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from msight_bus.message import Message

_SESSIONS_LIMIT = 4096
_MISSING_LIMIT = 4096
_NO_HOLES: list[int] = []


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """A snapshot of one subscription's counters, in messages.

    Attributes:
        received: delivered by the broker.
        delivered: handed to the consumer.
        dropped: not handed to the consumer, by cause: a queue policy's name, ``"block_timeout"``, ``"revoked"``, ``"closed"``,
            ``"too old"`` (its lifespan was over), ``"skipped"`` (passed over in a log for the latest ones; at most so many).
        gaps: how often messages were found missing, or a cut was announced; ``None`` where that is not counted.
        missing: messages known to be missing; ``None`` where counting is meaningless (a member of a group).
        duplicates: messages that came again; ``None`` where counting is meaningless.
        queued: waiting for the consumer now.
        queued_peak: the most that ever waited.
        lag: records of a log that the consumer has not been given: those behind the position, up to the end, and those queued;
            ``None`` where there is no log, or its end is not known yet.
        deadlines_missed: how often the stream went quiet for the subscription's deadline.
    """

    received: int
    delivered: int
    dropped: Mapping[str, int]
    gaps: int | None
    missing: int | None
    duplicates: int | None
    queued: int
    queued_peak: int
    deadlines_missed: int = 0
    lag: int | None = None


class _Stream:
    __slots__ = ("first", "highest", "holes")

    def __init__(self, first: int) -> None:
        self.first = first
        self.highest = first - 1
        self.holes: OrderedDict[int, None] = OrderedDict()


class SequenceTracker:
    """Follows the sequences of every publisher of one topic.

    Attributes:
        gaps: holes found so far; a late message does not undo its hole's announcement.
        missing: messages missing now; a late message lowers it.
        duplicates: messages seen before.
    """

    __slots__ = ("_streams", "duplicates", "gaps", "missing")

    def __init__(self) -> None:
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self.gaps = 0
        self.missing = 0
        self.duplicates = 0

    def observe(self, batch: list[Message]) -> list[int]:
        """Account for a chunk's messages, at least one; returns the sizes of the holes that it reveals."""
        session = batch[0].session
        stream = self._streams.get(session) if session is not None else None
        if stream is None:
            return self._observe_each(batch)
        expected = stream.highest
        for message in batch:  # mostly one publisher's next messages
            expected += 1
            if message.sequence != expected or message.session != session:
                return self._observe_each(batch)
        stream.highest = expected
        return _NO_HOLES

    def _observe_each(self, batch: list[Message]) -> list[int]:
        found: list[int] = []
        session: int | None = None
        stream: _Stream | None = None
        for message in batch:
            sequence = message.sequence
            if sequence is None:
                continue
            if message.session != session or stream is None:
                session = message.session
                stream = self._stream(session or 0, sequence)
            step = sequence - stream.highest
            stream.highest += step if step > 0 else 0
            if step == 1:
                continue
            if step > 1:
                self._hole(stream, sequence - step + 1, sequence)
                found.append(step - 1)
            elif sequence in stream.holes:
                del stream.holes[sequence]
                self.missing -= 1
            elif sequence < stream.first:  # overtaken by the message that told where the subscription joined
                between, stream.first = stream.first - sequence - 1, sequence
                if between:
                    self._hole(stream, sequence + 1, sequence + 1 + between)
                    found.append(between)
            else:
                self.duplicates += 1
        return found

    def announced(self, session: int, highest: int) -> int:
        """A publisher says that ``highest`` was its last sequence; returns how many are newly found missing.

        A session never seen on this topic began after the subscription did or was silent: nothing is known of it.
        """
        stream = self._streams.get(session)
        if stream is None or highest <= stream.highest:
            return 0
        first, stream.highest = stream.highest + 1, highest
        self._hole(stream, first, highest + 1)
        return highest + 1 - first

    def _hole(self, stream: _Stream, first: int, end: int) -> None:
        self.gaps += 1
        self.missing += end - first
        for sequence in range(max(first, end - _MISSING_LIMIT), end):
            stream.holes[sequence] = None
        while len(stream.holes) > _MISSING_LIMIT:
            stream.holes.popitem(last=False)

    def _stream(self, session: int, sequence: int) -> _Stream:
        stream = self._streams.get(session)
        if stream is None:
            # The first message seen tells where the subscription joined, so nothing before it is missing.
            stream = self._streams[session] = _Stream(sequence)
            if len(self._streams) > _SESSIONS_LIMIT:
                self._streams.popitem(last=False)
        return stream
