"""What may be published: payloads, headers and keys, checked before anything is handed to a connection."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msight_bus.data import Data
from msight_bus.errors import HeaderError, MessageTooLargeError, PayloadError
from msight_bus.settings import Limits
from msight_bus.wire.envelope import HEADER

Payload = bytes | bytearray | memoryview | Data

# The token characters of HTTP (RFC 9110, 5.6.2), which NATS and Kafka carry unchanged.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")


def to_bytes(data: object) -> bytes:
    """The payload of ``data``.

    A mutable buffer is copied, because it leaves with the loop's next tick and its owner may have changed it by then.

    Raises:
        PayloadError: it is neither bytes-like nor a ``Data`` value.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, Data):
        return data.serialize()
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise PayloadError(
        f"A payload is bytes, bytearray, memoryview or a Data value, not {type(data).__name__}. "
        "For example publish(topic, text.encode()) or publish(topic, BytesData(data=...))."
    )


def check_key(key: str | bytes | None) -> str | None:
    """The ordering key as text.

    Raises:
        HeaderError: it is no text.
    """
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise HeaderError("A key is text (str, or UTF-8 bytes).") from error
    if key is None:
        return None
    if not isinstance(key, str):
        raise HeaderError(f"A key is a str, not {type(key).__name__}.")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise HeaderError("A key is text that UTF-8 can carry; it has half of a surrogate pair.") from error
    return key


def check_headers(headers: Mapping[str, str], limits: Limits) -> Mapping[str, str]:
    """Return ``headers`` if every backend carries them unchanged.

    Raises:
        HeaderError: a name or value does not travel, or there are too many.
        MessageTooLargeError: together they are over ``MSIGHT_MAX_HEADER_BYTES``.
    """
    if len(headers) > limits.max_header_count:
        raise HeaderError(
            f"{len(headers)} headers are over the limit of {limits.max_header_count} (MSIGHT_MAX_HEADER_COUNT)."
        )
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise HeaderError(f"{name!r:.80} is not a header name: letters, digits and !#$%&'*+.^_`|~- are accepted.")
        if name.lower() == HEADER:
            raise HeaderError(f"The header {HEADER!r} is reserved for the bus's own metadata.")
        if not isinstance(value, str) or not _VALUE.fullmatch(value) or value != value.strip():
            raise HeaderError(
                f"The value of header {name!r} cannot travel: text without control characters and without white space "
                "at its ends is accepted."
            )
        size += len(name) + len(value.encode()) + 4
    if size > limits.max_header_bytes:
        raise MessageTooLargeError(
            f"The headers take {size} bytes and {limits.max_header_bytes} are accepted (MSIGHT_MAX_HEADER_BYTES).",
            size=size,
            limit=limits.max_header_bytes,
        )
    return headers
