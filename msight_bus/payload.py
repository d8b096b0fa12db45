"""Check payloads, headers and keys before they are passed to a connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from typing import Protocol

from msight_bus.data import Data
from msight_bus.errors import HeaderError, MessageTooLargeError, PayloadError
from msight_bus.protocol.envelope import HEADER
from msight_bus.settings import Limits


class BytesLike(Protocol):
    """Anything with the buffer protocol (PEP 688): bytes, bytearray, memoryview, array.array, a NumPy array."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the memory."""


Payload = BytesLike | Data

# The token characters of HTTP (RFC 9110, 5.6.2), which NATS and Kafka carry unchanged.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FIELD_NAME = re.compile(":[^:]*:")  # in a buffer's format (PEP 3118)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_BINARY = re.compile(
    r"[^\ud800-\udfff]*[\udc80-\udcff][^\ud800-\udc7f\udd00-\udfff]*"
)  # bytes that are not UTF-8 (PEP 383)


def to_bytes(data: object) -> bytes:
    """Return the payload of ``data``.

    A mutable buffer is copied, because the caller may change the buffer before the payload is written at the end of the event
    loop iteration.

    Raises:
        PayloadError: ``data`` is neither bytes-like nor a ``Data`` value.
    """
    if type(data) is bytes:
        return data
    if isinstance(data, Data):
        return data.serialize()
    if not isinstance(data, str | Number):  # scalars of NumPy have the buffer protocol, too
        try:
            return bytes(_view(data))
        except TypeError:
            pass  # no buffer
        except (ValueError, BufferError) as error:
            raise PayloadError(f"The bytes of this {type(data).__name__} cannot be read: {error}.") from error
    raise PayloadError(
        f"A payload must be bytes-like or a Data value, not {type(data).__name__}. "
        "For example, publish(topic, text.encode()) or publish(topic, BytesData(data=...)). "
        "Other types need publisher(topic, type=...)."
    )


def _view(data: object) -> memoryview:
    view = memoryview(data)  # type: ignore[arg-type]
    if "O" in _FIELD_NAME.sub("", view.format):
        raise ValueError("a buffer of dtype object holds addresses")
    return view


def check_key(key: str | bytes | None, *, binary: bool = False) -> str | None:
    """Return the ordering key as text; ``None`` without a key.

    Args:
        key: text, or UTF-8 bytes.
        binary: whether the backend accepts bytes that are not UTF-8, which become text with ``surrogateescape``.

    Raises:
        HeaderError: ``key`` is not text.
    """
    errors = "surrogateescape" if binary else "strict"
    if isinstance(key, bytes):
        try:
            return key.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise HeaderError(f"A key must be a str or UTF-8 bytes; {key!r:.80} is not valid UTF-8.") from error
    if key is None:
        return None
    if not isinstance(key, str):
        raise HeaderError(f"A key must be a str or UTF-8 bytes, not {type(key).__name__}.")
    try:
        key.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise HeaderError(
            f"A key must be encodable as UTF-8; {key!r:.80} contains half of a surrogate pair."
        ) from error
    return str.__str__(key)


def check_headers(headers: Mapping[str, str], limits: Limits, *, binary: bool = False) -> Mapping[str, str]:
    """Return ``headers`` if they are valid on every backend; instances of subclasses of ``str`` are converted.

    Args:
        headers: user headers.
        limits: maximum number and bytes of the headers.
        binary: whether the backend accepts values that are not UTF-8, which are text with ``surrogateescape``.

    Raises:
        HeaderError: a name or value is not valid, or there are too many headers.
        MessageTooLargeError: the headers exceed ``MSIGHT_MAX_HEADER_BYTES``.
    """
    if not isinstance(headers, Mapping):
        raise HeaderError(
            f"Headers must be a mapping of str to str, not {type(headers).__name__}; for example headers={{'camera': 'ne'}}."
        )
    if len(headers) > limits.max_header_count:
        raise HeaderError(
            f"Too many headers: {len(headers)}; at most {limits.max_header_count} are accepted (MSIGHT_MAX_HEADER_COUNT)."
        )
    size = 0
    plain = True
    for name, value in headers.items():
        if not isinstance(name, str):
            raise HeaderError(
                f"{name!r:.80} is not a valid header name: a name must be a str, not {type(name).__name__}."
            )
        if not _NAME.fullmatch(name):
            raise HeaderError(
                f"{name!r:.80} is not a valid header name: ASCII letters, digits and !#$%&'*+.^_`|~- are accepted."
            )
        if name.lower() == HEADER:
            raise HeaderError(f"The header {HEADER!r} is reserved for the metadata of the bus; use another name.")
        if not isinstance(value, str):
            raise HeaderError(
                f"The value of header {name!r} must be a str, not {type(value).__name__}; convert it, for example with str()."
            )
        if (not _VALUE.fullmatch(value) or value != value.strip()) and not (binary and _BINARY.fullmatch(value)):
            raise HeaderError(
                f"The value {value!r:.80} of header {name!r} is not valid: text without control characters and without leading "
                "or trailing white space is accepted."
            )
        size += len(name) + len(value.encode("utf-8", "surrogateescape")) + 4
        plain = plain and type(name) is type(value) is str
    if size > limits.max_header_bytes:
        raise MessageTooLargeError(
            f"Headers too large: {size} bytes; at most {limits.max_header_bytes} are accepted (MSIGHT_MAX_HEADER_BYTES).",
            size=size,
            limit=limits.max_header_bytes,
        )
    return headers if plain else {str.__str__(name): str.__str__(value) for name, value in headers.items()}
