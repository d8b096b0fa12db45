"""Detect missing messages on a topic by the sequences of its publishers. Pure.

A publisher's *session* numbers the messages on a topic from 1. A *position* is the highest sequence of a session so far. A range
of sequences that was skipped below a position is a *hole*; a late message fills its place in a hole.

Any client that may publish on the topic can forge sessions and sequences. Therefore all state is bounded, and a jump that no
publisher can have made since its session was last heard is *implausible*: the size of the jump is not counted, and the new
position is tracked beside the old one. A message belongs to the position that it continues.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import Final

import msgspec

from msight_bus.message import Message

LOST: Final = "lost"
IMPLAUSIBLE: Final = "implausible"
EVICTED: Final = "evicted"

MAX_SESSIONS = 32_768
MAX_HOLES = 8_192
MAX_POSITIONS = 4

_PLAUSIBLE_JUMP = 2**20
_PLAUSIBLE_RATE = 4_000_000
"""Messages a second: more than any publisher sends."""

_IDLE_AFTER = 60.0
"""Seconds after which a position is evicted if its session continues at another one."""

_LOOKED_AT = 64
"""Sessions that `SequenceTracker.silence` examines."""

_EVICTION_NOTICE_INTERVAL = 1.0
"""Seconds between two findings of evictions."""

_EPOCHS = 16
"""Granularity of the order of last use: an epoch ends when a 16th of ``max_sessions`` sessions has begun."""
_start_of = attrgetter("start")


class Finding(msgspec.Struct, frozen=True, gc=False):
    """A gap: messages are missing.

    Attributes:
        missing: number of messages; ``None`` if unknown.
        cause: ``"lost"``; ``"implausible"``: a jump that no publisher can have made; ``"evicted"``: a session was evicted, and
            its later losses are unknown.
    """

    missing: int | None
    cause: str


_NOTHING: list[Finding] = []
"""The result for nearly every list of messages; never changed."""


class _Hole:
    """The missing sequences from ``start`` to before ``end``."""

    __slots__ = ("end", "position", "start")

    def __init__(self, position: _Position, start: int, end: int) -> None:
        self.position = position
        self.start = start
        self.end = end


class _Position:
    """A position of a session.

    Attributes:
        first, highest: every sequence in between was received, is in a hole, or was in an evicted hole.
        holes: the holes of this position, in ascending order.
        forgotten_below: a sequence below this one that is in no hole can be late or a duplicate.
        continued: whether a message continued this position after the jump to it.
        idle_since: POSIX seconds when the session continued at another position; ``None`` for the current position.
    """

    __slots__ = ("continued", "first", "forgotten_below", "highest", "holes", "idle_since")

    def __init__(self, first: int, highest: int, *, continued: bool) -> None:
        self.first = first
        self.highest = highest
        self.holes: list[_Hole] = []
        self.forgotten_below = 0
        self.continued = continued
        self.idle_since: float | None = None

    def hole_index(self, sequence: int) -> int | None:
        """Return the index of the hole that contains ``sequence``; ``None`` if no hole does."""
        index = bisect_right(self.holes, sequence, key=_start_of) - 1
        return index if index >= 0 and sequence < self.holes[index].end else None

    def distance(self, sequence: int) -> tuple[int, int]:
        """Return the distance of ``sequence`` from this position, as a tuple to compare; the nearest position is continued."""
        step = sequence - self.highest
        if 0 <= step <= 1:
            return 0, 0
        if step > 0:
            return 2, step
        return (1, -step) if sequence >= self.first else (3, self.first - sequence)


class _Session:
    """One publisher's stream.

    Attributes:
        position: the position that was continued last.
        beside: the other positions: those continued before, then those that a single jump led to, oldest first.
        heard: POSIX seconds of the last message or announcement.
        used: the tracker's epoch of the last use.
        announced: the last sequence that the publisher announced, 0 before the first announcement.
    """

    __slots__ = ("announced", "beside", "heard", "position", "used")

    def __init__(self, position: _Position, heard: float, used: int) -> None:
        self.position = position
        self.beside: tuple[_Position, ...] = ()
        self.heard = heard
        self.used = used
        self.announced = 0

    def position_of(self, sequence: int, now: float) -> _Position | None:
        """Return the position that ``sequence`` continues; ``None`` if the jump from every position is implausible."""
        if not self.beside and abs(sequence - self.position.highest) <= _PLAUSIBLE_JUMP:
            return self.position
        bound = _PLAUSIBLE_JUMP + _PLAUSIBLE_RATE * max(0.0, now - self.heard)
        plausible = [p for p in (self.position, *self.beside) if abs(sequence - p.highest) <= bound]
        return min(plausible, key=lambda position: position.distance(sequence), default=None)


class SequenceTracker:
    """The sequences of every publisher of one topic.

    Attributes:
        gaps: number of findings; a late message does not lower this number.
        missing: messages missing now, without gaps of unknown size; a late message lowers this number.
        duplicates: number of messages received more than once.
        evicted: number of sessions evicted.
    """

    __slots__ = (
        "_begun",
        "_clock",
        "_epoch",
        "_evicted_at",
        "_holes",
        "_max_holes",
        "_max_sessions",
        "_sessions",
        "_sessions_an_epoch",
        "duplicates",
        "evicted",
        "gaps",
        "missing",
    )

    def __init__(
        self,
        *,
        max_sessions: int = MAX_SESSIONS,
        max_holes: int = MAX_HOLES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            max_sessions: maximum number of sessions tracked; the least recently used is evicted first.
            max_holes: maximum number of holes of all sessions together; the oldest is evicted first and stays missing.
            clock: returns POSIX seconds: the clock of ``Message.received_at``.
        """
        self._max_sessions = max_sessions
        self._max_holes = max_holes
        self._clock = clock
        self._sessions: OrderedDict[int | None, _Session] = OrderedDict()  # by the epoch of their last use
        # An epoch spares updating the order of use at each message while few sessions begin, as nearly always.
        self._sessions_an_epoch = max(1, max_sessions // _EPOCHS)
        self._begun = 0
        self._epoch = 0
        self._holes: OrderedDict[_Hole, None] = OrderedDict()  # oldest first
        self._evicted_at = -math.inf  # time of the last finding of an eviction
        self.gaps = 0
        self.missing = 0
        self.duplicates = 0
        self.evicted = 0

    def observe(self, batch: list[Message]) -> list[Finding]:
        """Account for a list of at least one message, and return the findings.

        Messages without a session, and messages with sequence 0, which is never valid, are ignored.
        """
        session_id = batch[0].session
        session = self._sessions.get(session_id)
        if session is None or session.beside or session.used != self._epoch:
            return self._observe_each(batch)
        position = session.position
        expected = position.highest
        for message in batch:  # the usual case: the next messages of one publisher
            expected += 1
            if message.sequence != expected or message.session != session_id:
                return self._observe_each(batch)
        position.highest = expected
        session.heard = batch[0].received_at
        return _NOTHING

    def follows(self, session_id: int, sequence: int, now: float) -> bool:
        """Account for a message if it is the next of its session.

        Returns:
            ``True`` if accounted for; ``False`` if the caller must call `observe`.
        """
        session = self._sessions.get(session_id)
        if session is None or session.beside or session.used != self._epoch:
            return False
        position = session.position
        if sequence != position.highest + 1:
            return False
        position.highest = sequence
        session.heard = now
        return True

    def _observe_each(self, batch: list[Message]) -> list[Finding]:
        now = batch[0].received_at  # all were read together
        found: list[Finding] = []
        sessions = self._sessions
        epoch = self._epoch
        last_id: int | None = None
        session: _Session | None = None
        for message in batch:
            sequence = message.sequence
            session_id = message.session
            if session_id != last_id or session is None:
                session = sessions.get(session_id)
                last_id = session_id
                if session is None:
                    if sequence and session_id is not None:
                        session = self._begin(session_id, sequence, now, found)
                        epoch = self._epoch
                    continue
                if session.used != epoch:
                    self._use(session_id, session)
            if not sequence:
                continue
            position = session.position
            if sequence == position.highest + 1 and not session.beside:
                position.highest = sequence
            else:
                self._account(session, sequence, now, found)
            session.heard = now
        return found

    def announced(self, session_id: int, highest: int) -> Finding | None:
        """Account for a publisher's announcement that ``highest`` is its last sequence.

        The announcement of an unknown session is ignored: the session was silent since the subscription began.

        Returns:
            The finding; ``None`` if no message is missing.
        """
        session = self._sessions.get(session_id)
        if session is None or highest < 1:
            return None
        self._use(session_id, session)
        now = self._clock()
        position = session.position_of(highest, now)
        session.heard = now
        if position is None:
            self._follow(session, _Position(highest + 1, highest, continued=False))
            return self._found(None, IMPLAUSIBLE)
        session.announced = highest
        if highest <= position.highest:
            return None
        finding = self._lose(position, position.highest + 1, highest + 1)
        self._advance(session, position, highest, now)
        return finding

    def silence(self, within: float) -> float:
        """Return the longest silence, in seconds, of a session that never announced its last sequence; 0.0 if there is none.

        Only sessions heard in the last ``within`` seconds count. Examines the least recently used sessions only, because this
        method is called periodically.
        """
        now = self._clock()
        first = [session for _, session in zip(range(_LOOKED_AT), self._sessions.values(), strict=False)]
        silences = (now - session.heard for session in first if not session.announced)
        return max((silence for silence in silences if silence <= within), default=0.0)

    def _account(self, session: _Session, sequence: int, now: float, found: list[Finding]) -> None:
        """Account for a message, except for the next one of a session with a single position."""
        position = session.position_of(sequence, now)
        if position is None:
            self._follow(session, _Position(sequence, sequence, continued=False))
            found.append(self._found(None, IMPLAUSIBLE))
        elif sequence > position.highest:
            if sequence > position.highest + 1:
                found.append(self._lose(position, position.highest + 1, sequence))
            self._advance(session, position, sequence, now)
        elif (index := position.hole_index(sequence)) is not None:
            self._fill(position, index, sequence)
        elif sequence < position.first:  # overtaken by the first message of the session
            end, position.first = position.first, sequence
            if sequence + 1 < end:
                found.append(self._lose(position, sequence + 1, end))
        elif sequence >= position.forgotten_below:
            self.duplicates += 1

    # -- sessions and their positions

    def _begin(self, session_id: int, sequence: int, now: float, found: list[Finding]) -> _Session:
        """Track a new session; messages before the first one received are not missing."""
        hides_loss = self.evicted > 0 and sequence > 1  # may be an evicted session that continues
        if len(self._sessions) >= self._max_sessions:
            _, oldest = self._sessions.popitem(last=False)
            self.evicted += 1
            # A session that announced its last sequence cannot have lost messages, unless it continues.
            hides_loss |= bool(oldest.beside) or oldest.announced != oldest.position.highest
            for position in (oldest.position, *oldest.beside):
                self._forget(position)
        self._begun += 1
        self._epoch = self._begun // self._sessions_an_epoch
        position = _Position(sequence, sequence, continued=True)
        session = self._sessions[session_id] = _Session(position, now, self._epoch)
        if hides_loss and not 0 <= now - self._evicted_at < _EVICTION_NOTICE_INTERVAL:  # a clock may be set back
            self._evicted_at = now
            found.append(self._found(None, EVICTED))
        return session

    def _use(self, session_id: int | None, session: _Session) -> None:
        """Mark the session as used in this epoch."""
        session.used = self._epoch
        self._sessions.move_to_end(session_id)

    def _follow(self, session: _Session, position: _Position) -> None:
        """Track one more position; beyond the bound, evict the oldest that was never continued, else the longest idle one."""
        beside = session.beside
        if len(beside) == MAX_POSITIONS - 1:
            goes = next((other for other in beside if not other.continued), beside[-1])
            beside = tuple(other for other in beside if other is not goes)
            self._forget(goes)
        session.beside = (*beside, position)

    def _advance(self, session: _Session, position: _Position, highest: int, now: float) -> None:
        """Advance ``position`` to ``highest`` and make it the current one."""
        before, position.highest = position.highest, highest
        if not session.beside:
            return
        kept: list[_Position] = []
        for other in (session.position, *session.beside):
            if other is position:
                continue
            if other.idle_since is None:
                other.idle_since = now
            passed = before < other.first and other.highest <= highest
            if passed or now - other.idle_since >= _IDLE_AFTER:
                self._forget(other)
            else:
                kept.append(other)
        position.continued = True
        position.idle_since = None
        session.position = position
        session.beside = tuple(kept)

    def _forget(self, position: _Position) -> None:
        """Stop tracking the position; its holes stay missing."""
        for hole in position.holes:
            del self._holes[hole]

    # -- holes

    def _found(self, missing: int | None, cause: str) -> Finding:
        self.gaps += 1
        return Finding(missing, cause)

    def _lose(self, position: _Position, start: int, end: int) -> Finding:
        """Open a hole, above or below all others of its position."""
        self.missing += end - start
        holes = position.holes
        if holes and holes[-1].end == start:
            holes[-1].end = end
        else:
            self._keep(_Hole(position, start, end), len(holes) if not holes or holes[-1].end < start else 0)
        return self._found(end - start, LOST)

    def _fill(self, position: _Position, index: int, sequence: int) -> None:
        """Remove a late message's sequence from a hole."""
        self.missing -= 1
        hole = position.holes[index]
        if hole.end - hole.start == 1:
            del position.holes[index], self._holes[hole]
        elif sequence == hole.start:
            hole.start += 1
        else:
            end, hole.end = hole.end, sequence
            if sequence + 1 < end:
                self._keep(_Hole(position, sequence + 1, end), index + 1)

    def _keep(self, hole: _Hole, index: int) -> None:
        hole.position.holes.insert(index, hole)
        self._holes[hole] = None
        if len(self._holes) > self._max_holes:
            oldest, _ = self._holes.popitem(last=False)
            position = oldest.position
            del position.holes[bisect_right(position.holes, oldest.start, key=_start_of) - 1]
            position.forgotten_below = max(position.forgotten_below, oldest.end)
