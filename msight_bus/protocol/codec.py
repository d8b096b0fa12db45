"""`Codec`: the functions of a protocol with which a connection publishes and receives. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msight_bus.protocol.envelope import TopicCounter
from msight_bus.protocol.head_cache import Meta
from msight_bus.protocol.stream_decoder import Decoder

Publish = Callable[[TopicCounter, bytes, str | None, Mapping[str, str] | None, int, int], tuple[tuple[bytes, ...], int]]
"""Encode the topic's next message and advance the topic's sequence.

Takes the counter, payload, key, headers, publish time in nanoseconds since 1970 and the limit in bytes. Returns the parts to
write one after another, and the bytes that the broker's limit applies to. Raises `MessageTooLargeError` or `HeaderError` before
the sequence advances."""

Decoded = tuple[Meta | None, str | None, Mapping[str, str], bytes]
"""A decoded `Undecoded` message: its `Meta` (``None`` for a foreign message), key, headers and payload."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One protocol, with or without the envelope.

    Attributes:
        publish: encodes a message.
        decoder: makes a decoder for one connection; takes the maximum bytes of a message.
        decode_metadata: decodes metadata and payload of an `Undecoded` message.
    """

    publish: Publish
    decoder: Callable[[int], Decoder]
    decode_metadata: Callable[[bytes, bytes], Decoded]
