"""`Capabilities`: the properties of a backend as data, so that programs and tests need not compare backend names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The properties of the connected backend; the defaults are those of a broker without persistence.

    Attributes:
        persistence: whether the broker keeps messages for subscribers that are not connected.
        delivery: ``"best-effort"``: messages can be lost, and losses are counted; ``"at-least-once"``: messages can be
            redelivered.
        routing: which subscribers receive a message: ``"broadcast"``: all; ``"queue group"``: one member of each group.
        load_balancing: whether the members of a group share the messages of a topic.
        replay: whether a subscription can start in the past.
        acknowledgement: whether ``ack`` and ``nack`` have an effect.
        native_headers: whether headers are native headers of the broker, which other clients can read.
        tail_loss: whether the loss of a publisher's last messages before a silence is detected.
        max_message_bytes: maximum bytes of a message, headers included.
    """

    routing: Literal["broadcast", "broadcast or queue group", "queue group"]
    load_balancing: bool
    native_headers: bool
    max_message_bytes: int
    persistence: bool = False
    delivery: Literal["best-effort", "at-least-once"] = "best-effort"
    replay: bool = False
    acknowledgement: bool = False
    tail_loss: bool = False
