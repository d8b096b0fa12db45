"""Frames back in order, after several workers have shared them."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Reorder(Generic[T]):
    """Gives items out by ascending index, each once.

    A hole holds back what follows until `patience` later items wait behind it; then it counts as missing and
    the order goes on without it. So at most `patience` items are ever held.
    """

    def __init__(self, patience: int = 8, *, start: int = 0) -> None:
        if patience < 1:
            raise ValueError(f"patience is a number of items, at least 1, for example 8, not {patience}")
        self._patience = patience
        self._next = start
        self._waiting: dict[int, T] = {}
        self.missing = 0
        """Indexes given up on."""
        self.late = 0
        """Items that came after their index was given up on or a second time; they were dropped."""

    def push(self, index: int, item: T) -> list[T]:
        """What can go on now, in order."""
        if index < self._next or index in self._waiting:
            self.late += 1
            return []
        self._waiting[index] = item
        if len(self._waiting) >= self._patience and self._next not in self._waiting:
            self._skip_hole()
        return self._in_order()

    def flush(self) -> list[T]:
        """The rest at the end of the stream, holes counted as missing."""
        rest: list[T] = []
        while self._waiting:
            self._skip_hole()
            rest += self._in_order()
        return rest

    def _skip_hole(self) -> None:
        first = min(self._waiting)
        self.missing += first - self._next
        self._next = first

    def _in_order(self) -> list[T]:
        ready: list[T] = []
        while self._next in self._waiting:
            ready.append(self._waiting.pop(self._next))
            self._next += 1
        return ready
