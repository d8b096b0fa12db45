"""Payloads as text for a terminal and as JSON: decoded to plain values where possible, shortened, and escaped.

Payloads come from other programs: they are decoded within the limits of the settings, and nothing is looked up or evaluated.
"""

from __future__ import annotations

import codecs
import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import msgspec

from msight_bus.data import decode_plain
from msight_bus.data.bounds import Layout, check_json
from msight_bus.data.image_header import read_size
from msight_bus.data.tags import TAG_FIELD
from msight_bus.errors import DecodeError, quoted
from msight_bus.message import Message
from msight_bus.settings import Limits

_MOST_TEXT, _MOST_JSON = 64 * 1024, 1024 * 1024
"""Maximum bytes of a payload that are shown as text, and of a payload that is decoded as JSON."""

_HEADER = 256 * 1024
"""Bytes in which the size of an image is searched: a hostile JPEG can consist of millions of segments."""

_ANY = Layout(dict[str, Any])

_EXAMINED = 1000
"""Characters that are examined to distinguish text from other bytes."""

_CONTAINERS = frozenset([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""The first bytes of maps and arrays in MessagePack."""

_ITEMS, _TEXT, _BYTES = 16, 120, 32
"""Maximum items of a container, characters of a text in it, and bytes that are shown."""


def decoded(message: Message, limits: Limits) -> Any:
    """Return the plain values of a payload in MessagePack or JSON, or its text; else the payload."""
    payload = message.payload
    try:
        if payload[:1] and payload[0] in _CONTAINERS:
            return decode_plain(payload, max_bytes=limits.max_decoded_bytes, max_nesting=limits.max_nesting)
        if payload[:1] in (b"{", b"[") and len(payload) <= _MOST_JSON:
            check_json(payload, _ANY, max_bytes=limits.max_decoded_bytes, max_nesting=limits.max_nesting)
            return msgspec.json.decode(payload)
    except (DecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # the limit can be inside a character
        text = codecs.getincrementaldecoder("utf-8")().decode(payload[:_MOST_TEXT], final=len(payload) <= _MOST_TEXT)
    except UnicodeDecodeError:
        return payload
    hidden = sum([not (char.isprintable() or char.isspace()) for char in text[:_EXAMINED]])
    return text if 4 * hidden <= min(len(text), _EXAMINED) else payload


def as_text(value: Any, most: int) -> str:
    """Return a value on one line of printable characters, of about ``most`` characters. Numbers are never truncated."""
    if isinstance(value, str):
        return quoted(value, most)
    return _bytes(value, _BYTES) if isinstance(value, bytes) else _short(value, most)


def _short(value: Any, most: int) -> str:
    if isinstance(value, str):
        return f"'{quoted(value, max(4, min(most, _TEXT)))}'"
    if isinstance(value, bytes):
        return f"<{_bytes(value, 0)}>"
    if isinstance(value, Mapping):
        tag = value.get(TAG_FIELD)
        fields = [(quoted(name, _TEXT), item) for name, item in value.items() if name != TAG_FIELD]
        if isinstance(tag, str):
            return f"{quoted(tag, _TEXT).rpartition('.')[2]}({_items([(f'{name}=', item) for name, item in fields], most)})"
        return f"{{{_items([(f'{name}: ', item) for name, item in fields], most)}}}"
    if isinstance(value, list | tuple):
        lengths = {len(item) if isinstance(item, list) else 0 for item in value}
        if len(value) > _ITEMS and len(lengths) == 1 and min(lengths):
            return f"<{len(value):,} x {min(lengths):,} values>"  # such as the points of a cloud
        return f"[{_items([('', item) for item in value], most)}]"
    return quoted(value, _TEXT)


def _items(items: list[tuple[str, Any]], most: int) -> str:
    texts: list[str] = []
    for name, item in items[:_ITEMS]:
        if most <= 0:
            break
        texts.append(name + _short(item, most - len(name)))
        most -= len(texts[-1]) + 2
    more = len(items) - len(texts)
    return ", ".join([*texts, f"… {more:,} more"] if more else texts)


def _bytes(value: bytes, shown: int) -> str:
    """Return size and shape of an image; else the first bytes as hexadecimal digits, and the size."""
    image = read_size(value[:_HEADER])
    if image is not None:
        return f"{image[0]} {image[1]}x{image[2]}, {len(value):,} B"
    size = f"{len(value):,} B"
    if len(value) <= _BYTES:
        return value.hex(" ") or size
    return f"{value[:shown].hex(' ')} … {size}" if shown else size


def as_json(value: Any) -> Any:
    """Return a value of JSON's types: bytes become text in base64."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def matches(message: Message, value: Any, wanted: str) -> bool:
    """Return whether a message contains ``wanted``.

    Args:
        message: the message.
        value: the decoded payload of the message.
        wanted: ``name=value``, for a field (with dots for nested fields), a header, or ``key``; or a text, whose case is ignored.
    """
    path, equals, text = wanted.partition("=")
    if not equals:
        parts = (message.topic, message.key or "", *message.headers.values(), as_text(value, _MOST_TEXT))
        return any(wanted.lower() in part.lower() for part in parts)
    found = value
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, bool):
        found = str(found).lower()
    if isinstance(found, int | float):
        try:
            return float(text) == found
        except ValueError:
            return False
    return text in (found, message.headers.get(path), message.key if path == "key" else None)
