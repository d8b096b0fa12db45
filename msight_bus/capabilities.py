"""What a backend truly does, as data. Tests and users read this instead of asking which backend it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the connected backend does.

    Attributes:
        persistence: messages outlive the broker's memory of a subscriber, and the subscriber itself.
        delivery: ``"best-effort"`` may lose, and counts what it lost; ``"at-least-once"`` may repeat.
        routing: who gets a message: every subscriber, or one member of each group.
        load_balancing: members of a group share a topic's messages.
        replay: a subscription may start in the past.
        acknowledgement: ``ack`` and ``nack`` mean something.
        native_headers: headers are the broker's own and any other client can read them.
        tail_loss: the loss of a publisher's last messages before a silence is noticed.
        max_message_bytes: what the broker accepts for one message, in bytes, headers included.
    """

    persistence: bool
    delivery: Literal["best-effort", "at-least-once"]
    routing: Literal["broadcast", "broadcast or queue group", "queue group"]
    load_balancing: bool
    replay: bool
    acknowledgement: bool
    native_headers: bool
    tail_loss: bool
    max_message_bytes: int
