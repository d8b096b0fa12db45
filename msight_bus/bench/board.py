"""Counters that the processes of a run share: how far the receiver is, when to go, how many were sent."""

from __future__ import annotations

from multiprocessing.sharedctypes import RawArray
from typing import Any


class Board:
    """Shared memory; one process writes each field and the others read it.

    Attributes:
        received: messages that the receiver has counted: credits for the sender.
        sent: messages that the sender has sent in all, 0 until it has ended.
        go: set once both sides are ready.
        give_up: set when the run is void and everyone should end.
    """

    def __init__(self) -> None:
        self._shared: Any = RawArray("Q", 4)
        self._view: memoryview | None = None

    def __getstate__(self) -> Any:
        return self._shared

    def __setstate__(self, shared: Any) -> None:
        self._shared, self._view = shared, None

    @property
    def view(self) -> memoryview:
        """The fields as numbers; quicker than through ctypes."""
        if self._view is None:
            self._view = memoryview(self._shared).cast("B").cast("Q")
        return self._view

    def clear(self) -> None:
        """Ready for the next run."""
        for field in range(4):
            self.view[field] = 0


RECEIVED, SENT, GO, GIVE_UP = range(4)
