"""Decode untrusted bytes to a ``Data`` value."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

import msgspec

from msight_bus.data.bounds import check_bounds
from msight_bus.data.tags import TAG_FIELD, class_of
from msight_bus.errors import DecodeError, described

if TYPE_CHECKING:
    from msight_bus.data.base import Data

    D = TypeVar("D", bound=Data)
else:
    D = TypeVar("D")

DEFAULT_MAX_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_NESTING = 32

PLAIN_TYPES = (bytes, bytearray, datetime)
"""Types that ``Data.to_dict`` does not convert: MessagePack has them, and msgspec would convert them to text."""

_KEY = bytes([0xA0 | len(TAG_FIELD)]) + TAG_FIELD.encode()
_SCALARS = frozenset({bytes, str, int, float, bool, NoneType})


def looks_like_data(payload: bytes) -> bool:
    """Return whether a payload begins like a ``Data`` value: a map whose first key is ``data_type``.

    Takes constant time and does not validate the rest of the payload.
    """
    return _tag_position(payload) > 0


def decode(payload: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_nesting: int = DEFAULT_MAX_NESTING) -> Data:
    """Decode a payload to the registered class that its ``data_type`` names.

    Args:
        payload: MessagePack bytes.
        max_bytes: limit of the payload and of the estimated memory of the decoded value, in bytes.
        max_nesting: limit of nested maps and arrays; the outermost map is level 1. Entries that the class does not declare are
            skipped and take no memory; if the class has scalar fields only, the limit does not apply to them.

    Raises:
        DecodeError: the payload is not a map, its ``data_type`` is missing or unknown, a field has the wrong type, the bytes are
            damaged, or a limit is exceeded.
    """
    if len(payload) > max_bytes:
        raise DecodeError(
            f"The payload has {len(payload)} bytes; at most {max_bytes} are decoded (MSIGHT_MAX_DECODED_BYTES)"
        )
    kind = _class_for(_read_tag(payload))
    try:
        decoder, scalars_only = _decoder(kind)
        # msgspec allocates for bytes that are present, so a false length is harmless. It limits neither the nesting nor the
        # memory of containers, such as a million empty maps; a class with scalar fields only has no containers.
        if not scalars_only:
            check_bounds(payload, max_bytes=max_bytes, max_nesting=max_nesting)
        return decoder.decode(payload)
    except DecodeError:
        raise
    except Exception as error:  # any error: __post_init__ of a user's class runs on untrusted values
        raise DecodeError(f"The payload is not valid data: {_cause(error)}") from error


def decode_plain(payload: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_nesting: int = DEFAULT_MAX_NESTING) -> Any:
    """Decode any MessagePack value to plain values, within the limits of `decode`; no class is looked up.

    Raises:
        DecodeError: the payload is not one MessagePack value, or a limit is exceeded.
    """
    check_bounds(payload, max_bytes=max_bytes, max_nesting=max_nesting)
    try:
        return msgspec.msgpack.decode(payload)
    except Exception as error:  # invalid MessagePack or UTF-8, or a map whose key cannot be hashed
        raise DecodeError(f"The payload is not valid MessagePack: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return the text of a decoding error, with its type unless msgspec raised it."""
    known = isinstance(error, msgspec.DecodeError | UnicodeDecodeError | RecursionError | TypeError)
    return str(error) if known else described(error)


def from_mapping(plain: Mapping[str, Any]) -> Data:
    """Convert plain values to the class that their ``data_type`` names.

    Raises:
        DecodeError: see ``Data.from_dict``.
    """
    tag = plain.get(TAG_FIELD) if isinstance(plain, Mapping) else None
    if not isinstance(tag, str):
        raise DecodeError(f"Data.from_dict takes a mapping with a str {TAG_FIELD!r}, not {type(plain).__name__}")
    kind = _class_for(tag)
    try:
        return msgspec.convert(plain, kind, builtin_types=PLAIN_TYPES)
    except Exception as error:
        raise DecodeError(f"The mapping is not valid data: {_cause(error)}") from error


def require(kind: type[D], value: Data) -> D:
    """Return ``value`` if it is a ``kind``.

    Raises:
        DecodeError: ``value`` is of another class.
    """
    if not isinstance(value, kind):
        raise DecodeError(f"The data is {type(value).__name__}, not {kind.__name__}")
    return value


def _tag_position(payload: bytes) -> int:
    """Return the offset of the value of a leading ``data_type``, or 0."""
    lead = payload[0] if payload else 0
    header = 1 if 0x81 <= lead <= 0x8F else 3 if lead == 0xDE else 5 if lead == 0xDF else 0
    end = header + len(_KEY)
    return end if header and payload[header:end] == _KEY else 0


def _read_tag(payload: bytes) -> str:
    start = _tag_position(payload)
    if not start:
        raise DecodeError(f"The payload is not a MessagePack map that begins with {TAG_FIELD!r}")
    lead = payload[start] if start < len(payload) else 0
    if 0xA0 <= lead <= 0xBF:
        start, length = start + 1, lead & 0x1F
    elif lead == 0xD9:
        start, length = start + 2, int.from_bytes(payload[start + 1 : start + 2], "big")
    else:  # a tag has at most 255 bytes
        raise DecodeError(f"The payload's {TAG_FIELD!r} is not a string of at most 255 bytes")
    return str(payload[start : start + length], "utf-8", "replace")


def _class_for(tag: str) -> type[Data]:
    kind = class_of(tag)
    if kind is None:
        raise DecodeError(
            f"No class is registered for the {TAG_FIELD} {tag[:255]!r}; "
            "import the module that defines it before decoding"
        )
    return kind


@cache
def _decoder(kind: type[Data]) -> tuple[msgspec.msgpack.Decoder[Data], bool]:
    """Return the decoder of a class, and whether the class has scalar fields only, so that it decodes no containers.

    Built on first use, so that annotations can name classes defined later.
    """
    fields = msgspec.structs.fields(kind)
    return msgspec.msgpack.Decoder(kind), all(_is_scalar(field.type) for field in fields)


def _is_scalar(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_scalar(member) for member in get_args(annotation))
    return annotation in _SCALARS
