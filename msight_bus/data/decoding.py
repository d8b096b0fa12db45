"""Decode untrusted bytes to a ``Data`` value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

import msgspec

from msight_bus.data.bounds import Layout, check_bounds, check_json
from msight_bus.data.tags import TAG_FIELD, class_of
from msight_bus.errors import ConfigError, DecodeError, described, quoted

if TYPE_CHECKING:
    from msight_bus.data.base import Data

T = TypeVar("T")

DEFAULT_MAX_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_NESTING = 32

PLAIN_TYPES = (bytes, bytearray, datetime)
"""Types that ``Data.to_dict`` does not convert: MessagePack has them, and msgspec would convert them to text."""

_KEY = bytes([0xA0 | len(TAG_FIELD)]) + TAG_FIELD.encode()


class Decoder(Generic[T]):
    """Decodes untrusted bytes to a value of one type, within limits."""

    def __init__(self, decode: Callable[[bytes], T], layout: Layout, *, is_json: bool) -> None:
        """
        Args:
            decode: decodes a payload; it can raise any error.
            layout: the limits that follow from the type.
            is_json: whether payloads are JSON; else MessagePack.
        """
        self._decode = decode
        self._layout = layout
        self._is_json = is_json

    def decode(self, payload: bytes, max_bytes: int, max_nesting: int) -> T:
        """Decode a payload.

        Raises:
            DecodeError: the payload is not a value of the type, or exceeds a limit (`msight_bus.data.decode`).
        """
        if len(payload) > max_bytes:
            raise DecodeError(
                f"The payload has {len(payload)} bytes; at most {max_bytes} are decoded (MSIGHT_MAX_DECODED_BYTES)"
            )
        layout = self._layout
        try:
            if self._is_json:
                check_json(payload, layout, max_bytes=max_bytes, max_nesting=max_nesting)
            elif not layout.is_within(len(payload), max_bytes, max_nesting):
                check_bounds(bytes(payload), max_bytes=max_bytes, max_nesting=max_nesting, container=layout.container)
            return self._decode(payload)
        except DecodeError:
            raise
        except Exception as error:  # any error: __post_init__ of a user's class runs on untrusted values
            raise DecodeError(f"The payload is not valid data: {_cause(error)}") from error


def make_decoder(kind: Any, *, is_json: bool = False) -> Decoder[Any]:
    """Make a decoder of a type that msgspec supports.

    Raises:
        ConfigError: an annotation in the type cannot be resolved or decoded.
    """
    try:
        layout = Layout(kind)
        decode = (msgspec.json if is_json else msgspec.msgpack).Decoder(kind).decode
    except Exception as error:
        raise ConfigError(f"{_unresolved(kind)}: the annotation cannot be decoded: {described(error)}.") from error
    if layout.unknown is not None:
        raise ConfigError(
            f"{layout.unknown}: a value of this class cannot be decoded; annotate the field with plain types, Data classes, "
            "structs or dataclasses."
        )
    return Decoder(decode, layout, is_json=is_json)


def _unresolved(kind: Any) -> str:
    """Return the first field of a class whose annotation cannot be resolved or decoded, else the type's name."""
    for owner in getattr(kind, "__mro__", ()):
        for field, annotation in vars(owner).get("__annotations__", {}).items():
            alone = type(field, (), {"__annotations__": {field: annotation}, "__module__": owner.__module__})
            try:
                msgspec.msgpack.Decoder(get_type_hints(alone)[field])
            except Exception:
                return f"{owner.__name__}.{field}"
    return getattr(kind, "__name__", str(kind))


def looks_like_data(payload: bytes) -> bool:
    """Return whether a payload begins like a ``Data`` value: a map whose first key is ``data_type``.

    Takes constant time and does not validate the rest of the payload.
    """
    return _tag_position(payload) > 0


def decode(
    payload: bytes,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_nesting: int = DEFAULT_MAX_NESTING,
    kinds: tuple[type[Data], ...] = (),
) -> Data:
    """Decode a payload to the registered class that its ``data_type`` names.

    Args:
        payload: MessagePack bytes.
        max_bytes: limit of the payload and of the estimated memory of the decoded value, in bytes.
        max_nesting: limit of nested maps and arrays in the decoded value; the outermost map is level 1. Entries that the class
            does not declare are skipped and take no memory.
        kinds: accepted classes, with their subclasses; all if empty.

    Raises:
        DecodeError: the payload is not a map, its ``data_type`` is missing, unknown or not accepted, a field has the wrong type,
            the bytes are damaged, or a limit is exceeded.
    """
    kind = _class_for(_read_tag(payload), kinds)
    try:
        decoder = decoder_of(kind)
    except ConfigError as error:
        raise DecodeError(str(error)) from error
    value: Data = decoder.decode(payload, max_bytes, max_nesting)
    return value


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
    return quoted(str(error) if known else described(error))


def from_mapping(plain: Mapping[str, Any], kinds: tuple[type[Data], ...]) -> Data:
    """Convert plain values to the class that their ``data_type`` names.

    Raises:
        DecodeError: see ``Data.from_dict``.
    """
    tag = plain.get(TAG_FIELD) if isinstance(plain, Mapping) else None
    if not isinstance(tag, str):
        raise DecodeError(f"Data.from_dict takes a mapping with a str {TAG_FIELD!r}, not {type(plain).__name__}")
    kind = _class_for(tag, kinds)
    try:
        return msgspec.convert(plain, kind, builtin_types=PLAIN_TYPES)
    except Exception as error:
        raise DecodeError(f"The mapping is not valid data: {_cause(error)}") from error


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


def _class_for(tag: str, kinds: tuple[type[Data], ...]) -> type[Data]:
    kind = class_of(tag)
    if kind is None:
        raise DecodeError(
            f"No class is registered for the {TAG_FIELD} {tag[:255]!r}; "
            "import the module that defines it before decoding"
        )
    if kinds and not issubclass(kind, kinds):
        raise DecodeError(f"The data is {kind.__name__}, not {' or '.join(one.__name__ for one in kinds)}")
    return kind


def decoder_of(kind: type[Data]) -> Decoder[Data]:
    """Return the decoder of a class. Made on first use, so that annotations can name classes defined later.

    Raises:
        ConfigError: an annotation cannot be resolved or decoded.
    """
    decoder = decoders.get(kind)
    if decoder is None:
        decoder = decoders[kind] = make_decoder(kind)
    return decoder


decoders: dict[type[Data], Decoder[Data]] = {}
"""Decoders made so far."""
