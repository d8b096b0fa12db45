"""From bytes that anybody may have sent to a ``Data`` value, or a ``DecodeError``."""

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
"""What ``Data.to_dict`` leaves as it is: MessagePack has these types; they would become text otherwise."""

_KEY = bytes([0xA0 | len(TAG_FIELD)]) + TAG_FIELD.encode()
_SCALARS = frozenset({bytes, str, int, float, bool, NoneType})


def looks_like_data(payload: bytes) -> bool:
    """Whether a payload begins as a ``Data`` value does: a map whose first key is ``data_type``.

    Constant time; it tells ``Data`` from raw bytes, not valid ``Data`` from damaged.
    """
    return _tag_position(payload) > 0


def decode(payload: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_nesting: int = DEFAULT_MAX_NESTING) -> Data:
    """Decode a payload into the registered class that its ``data_type`` names.

    Args:
        payload: MessagePack bytes.
        max_bytes: bound of the payload and, by estimate, of the memory that its decoded value takes, in
            bytes.
        max_nesting: bound of maps and arrays inside each other; the outermost map is the first level. Entries
            that the class does not declare are skipped and take no memory; they are not held to it where the
            class has scalar fields only.

    Raises:
        DecodeError: no map, no or an unknown ``data_type``, wrong types, damaged bytes, or over a bound.
    """
    if len(payload) > max_bytes:
        raise DecodeError(f"The payload has {len(payload)} bytes; at most {max_bytes} are decoded")
    kind = _class_for(_read_tag(payload))
    try:
        decoder, scalars_only = _decoder(kind)
        # msgspec allocates for what has arrived, not for what a length claims, so a lying length needs no
        # check here. It cannot bound nesting, nor the memory of a million empty maps: only containers bring
        # those.
        if not scalars_only:
            check_bounds(payload, max_bytes=max_bytes, max_nesting=max_nesting)
        return decoder.decode(payload)
    except DecodeError:
        raise
    except Exception as error:  # anything: a class's own __post_init__ runs on what anybody may have sent
        raise DecodeError(f"The payload is not valid data: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return what an error of decoding says; with its type where that is not msgspec's."""
    known = isinstance(error, msgspec.DecodeError | UnicodeDecodeError | RecursionError | TypeError)
    return str(error) if known else described(error)


def from_mapping(plain: Mapping[str, Any]) -> Data:
    """Convert plain values to the class that their ``data_type`` names; see ``Data.from_dict``."""
    tag = plain.get(TAG_FIELD) if isinstance(plain, Mapping) else None
    if not isinstance(tag, str):
        raise DecodeError(f"Data needs a mapping with a {TAG_FIELD!r}; got {type(plain).__name__}")
    kind = _class_for(tag)
    try:
        return msgspec.convert(plain, kind, builtin_types=PLAIN_TYPES)
    except Exception as error:
        raise DecodeError(f"The mapping is not valid data: {_cause(error)}") from error


def require(kind: type[D], value: Data) -> D:
    """``value``, if it is a ``kind``; else DecodeError."""
    if not isinstance(value, kind):
        raise DecodeError(f"The data is {type(value).__name__}, not {kind.__name__}")
    return value


def _tag_position(payload: bytes) -> int:
    """Where the value of a leading ``data_type`` begins, or 0."""
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
    else:  # no class path has more than 255 bytes
        raise DecodeError(f"The payload's {TAG_FIELD!r} is not a short string")
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
    """The decoder of a class, built on first use so that annotations may name later classes.

    Also whether its fields are scalars only, so that no container can come out of it.
    """
    fields = msgspec.structs.fields(kind)
    return msgspec.msgpack.Decoder(kind), all(_is_scalar(field.type) for field in fields)


def _is_scalar(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_scalar(member) for member in get_args(annotation))
    return annotation in _SCALARS
