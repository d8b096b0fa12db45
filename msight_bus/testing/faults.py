"""Which fault happens to which delivery: on command, or by chance from a seed. Pure."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

Fault = Literal["drop", "duplicate", "reorder", "delay"]
"""What may happen to one message on its way to one subscription."""

FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often deliveries go wrong; at most one fault happens to each.

    The bus's own messages (``_msight.…``) are spared.

    Attributes:
        drop: probability that a message is lost.
        duplicate: probability that it comes twice.
        reorder: probability that it comes behind the next message of the subscription, or after ``seconds`` if there is none.
        delay: probability that it comes up to ``seconds`` late, and holds up what follows on its connection;
            longer than ``ping_interval`` and ``pong_timeout``, and the bus takes the connection for dead.
        seconds: see ``reorder`` and ``delay``.
        seed: of the chances; the same seed gives the same faults to the same program.

    Raises:
        ValueError: no probabilities, together over 1, or ``seconds`` is not above 0.
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
            raise ValueError(f"{', '.join(FAULTS)} are probabilities, together at most 1, not {chances}.")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds is above 0, not {self.seconds}.")


class Injector:
    """Decides for one delivery after the other."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._random = random.Random(faults.seed)
        self._commanded: deque[tuple[Fault, str | None]] = deque()

    def command(self, fault: Fault, topic: str | None, times: int) -> None:
        """The next ``times`` deliveries, on ``topic`` if given, that nothing was commanded for get ``fault``."""
        if fault not in FAULTS:
            raise ValueError(f"A fault is one of {', '.join(FAULTS)}, not {fault!r}.")
        if times < 1:
            raise ValueError(f"times is at least 1, not {times}.")
        self._commanded.extend([(fault, topic)] * times)

    def clear(self) -> None:
        """Forget what was commanded and has not happened."""
        self._commanded.clear()

    def decide(self, topic: str) -> Fault | None:
        """The fault of the next delivery on ``topic``."""
        for i, (fault, where) in enumerate(self._commanded):
            if where is None or where == topic:
                del self._commanded[i]
                return fault
        chance = self._random.random()
        for fault in FAULTS:
            chance -= getattr(self.faults, fault)
            if chance < 0:
                return fault
        return None

    def late(self) -> float:
        """Seconds that a delayed message is late."""
        return self._random.uniform(0, self.faults.seconds)
