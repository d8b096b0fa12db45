"""Decide the fault of each delivery: injected, or random from a seed. Pure."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

Fault = Literal["drop", "duplicate", "reorder", "delay"]
"""A fault of the delivery of one message to one subscription."""

FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities of random faults. A delivery has at most one fault; messages on reserved topics (``_msight.…``) have none.

    Attributes:
        drop: probability that a message is lost.
        duplicate: probability that a message is delivered twice.
        reorder: probability that a message is delivered after the next message of the subscription, or after ``seconds`` without
            a next message.
        delay: probability that a message is delivered up to ``seconds`` late; later messages of the connection wait. After
            ``ping_interval`` and ``pong_timeout`` without data, the bus closes the connection.
        seconds: seconds of ``reorder`` and ``delay``.
        seed: seed of the random numbers; the same seed and program give the same faults.

    Raises:
        ValueError: a value is not a probability, their sum exceeds 1, or ``seconds`` is not above 0.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    seconds: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        chances = [getattr(self, fault) for fault in FAULTS]
        if not all(0 <= chance <= 1 for chance in chances) or sum(chances) > 1:
            raise ValueError(f"{', '.join(FAULTS)} must be probabilities with a sum of at most 1, not {chances}.")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be above 0, not {self.seconds}.")


class Injector:
    """Decides the fault of each delivery."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._random = random.Random(faults.seed)
        self._injected: deque[tuple[Fault, str | None]] = deque()

    def inject(self, fault: Fault, topic: str | None, times: int) -> None:
        """Inject ``fault`` into the next ``times`` deliveries without an injected fault, on ``topic`` if given.

        Raises:
            ValueError: ``fault`` is not a fault, or ``times`` is below 1.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault must be one of {', '.join(FAULTS)}, not {fault!r}.")
        if times < 1:
            raise ValueError(f"times must be at least 1, not {times}.")
        self._injected.extend([(fault, topic)] * times)

    def clear(self) -> None:
        """Discard the injected faults that have not occurred."""
        self._injected.clear()

    def decide(self, topic: str) -> Fault | None:
        """Return the fault of the next delivery on ``topic``, or None."""
        for i, (fault, where) in enumerate(self._injected):
            if where is None or where == topic:
                del self._injected[i]
                return fault
        chance = self._random.random()
        for fault in FAULTS:
            chance -= getattr(self.faults, fault)
            if chance < 0:
                return fault
        return None

    def late(self) -> float:
        """Return a random delay, in seconds."""
        return self._random.uniform(0, self.faults.seconds)
