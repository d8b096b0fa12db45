"""The nodes and programs that have announced themselves, and which of them are lost. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

import msgspec

from msight_bus.announcements import NodeInfo, NodeStatus, ProgramInfo

MAX_NODES = 10_000
"""Maximum number of nodes, and of other programs, that a registry keeps."""

FORGET_AFTER = 3600.0
"""Seconds for which a node stays listed after its end or loss."""

_MISSED_HEARTBEATS = 3
_ASKED_AFTER = 1.25
"""Heartbeat intervals without a heartbeat after which the broker is asked for the node's liveness subscription."""

_ASKED_AT_ONCE = 64
"""Maximum number of nodes for which the broker is asked at a time."""

Key = tuple[str, str]
"""Name and instance."""

InfoT = TypeVar("InfoT", NodeInfo, ProgramInfo)


class _Heard(NamedTuple, Generic[InfoT]):
    """What is known of one node or program.

    Attributes:
        info: the last announcement.
        first, last: times of the first and the last announcement, by the observer's clock.
        sent_at: time of the last announcement, by the clock of its host.
    """

    info: InfoT
    first: float
    last: float
    sent_at: float


class Known(Generic[InfoT]):
    """The nodes, or the other programs, that have announced themselves.

    Attributes:
        heard: what is known of each node or program, by name and instance, in the order of the last announcement.
        gone: name and instance of those whose liveness subscription the broker does not report.
    """

    def __init__(self) -> None:
        self.heard: OrderedDict[Key, _Heard[InfoT]] = OrderedDict()
        self.gone: set[Key] = set()

    def hear(self, info: InfoT, now: float, sent_at: float) -> None:
        """Account for an announcement; above `MAX_NODES`, evict the node or program that was heard least recently."""
        key = (info.name, info.instance)
        before = self.heard.get(key)
        self.heard[key] = _Heard(info, now if before is None else before.first, now, sent_at)
        self.heard.move_to_end(key)
        self.gone.discard(key)
        if len(self.heard) > MAX_NODES:
            self.gone.discard(self.heard.popitem(last=False)[0])

    def listed(self, now: float) -> list[InfoT]:
        """Return all with their status, sorted by name; evict those that ended or were lost long ago, or were restarted."""
        shown: list[InfoT] = []
        later: dict[tuple[str, str], float] = {}  # when the latest one of this name and host was first heard
        for info, first, _, _ in self.heard.values():
            later[info.name, info.host] = max(first, later.get((info.name, info.host), first))
        restarted = self._restarted()
        for key, (info, _, heard_at, _) in list(self.heard.items()):
            silent = now - heard_at
            lost = not info.ended and (key in self.gone or silent > _MISSED_HEARTBEATS * info.heartbeat_interval)
            replaced = lost and info.host and later[info.name, info.host] > heard_at
            old = (lost or info.ended) and silent > max(FORGET_AFTER, _MISSED_HEARTBEATS * info.heartbeat_interval)
            if replaced or old:
                del self.heard[key]
                self.gone.discard(key)
            elif key not in restarted:
                shown.append(msgspec.structs.replace(info, status=NodeStatus.LOST) if lost else info)
        return sorted(shown, key=lambda info: (info.name, info.started_at, info.instance))

    def _restarted(self) -> set[Key]:
        """Return the earlier runs of workers that were started again: same name, host and ``instance_id``, and not heard since.

        An earlier run that is heard again is still running, besides the later one.
        """
        runs: dict[tuple[str, str, str], list[tuple[Key, _Heard[InfoT]]]] = {}
        for key, one in self.heard.items():
            if one.info.host and one.info.instance_id is not None:
                runs.setdefault((one.info.name, one.info.host, one.info.instance_id), []).append((key, one))
        found: set[Key] = set()
        for several in runs.values():
            latest, last = max(several, key=lambda run: (run[1].info.started_at, run[1].first))
            for key, one in several:
                if key != latest and one.last <= last.first and one.sent_at < last.info.started_at:
                    found.add(key)
        return found

    def late(self, now: float, quiet_until: float) -> list[Key]:
        """Return the keys whose heartbeat is late and whose liveness subscription to look up, at most `_ASKED_AT_ONCE`."""
        late: list[Key] = []
        for key, (info, _, heard_at, _) in self.heard.items():
            silent = now - max(heard_at, quiet_until)
            if silent > _ASKED_AFTER * info.heartbeat_interval and info.present and not info.ended:
                late.append(key)
        return [key for key in late if key not in self.gone][:_ASKED_AT_ONCE]

    @property
    def shortest_interval(self) -> float:
        """The shortest heartbeat interval, in seconds, at most 1."""
        return min((info.heartbeat_interval for info, _, _, _ in self.heard.values()), default=1.0)
