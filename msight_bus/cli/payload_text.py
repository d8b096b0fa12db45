"""Payloads as text for a terminal and as JSON: decoded to plain values where possible, shortened, and escaped.

Everything in a payload comes from another program. Values are decoded within the limits of the settings and to plain values only;
no class is looked up and nothing is evaluated.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from msight_bus.data import decode_plain
from msight_bus.data.image_header import read_size
from msight_bus.data.tags import TAG_FIELD
from msight_bus.errors import DecodeError, quoted
from msight_bus.message import Message
from msight_bus.settings import Limits

_MOST_TEXT = 64 * 1024
_MOST_JSON = 1024 * 1024
"""Maximum bytes of a payload that is shown as text, and that is decoded as JSON."""

_CONTAINERS = frozenset([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""The first bytes of maps and arrays in MessagePack."""

_EXAMINED = 1000
"""Characters that are examined to tell text from other bytes."""

_SHOWN_ITEMS = 16
_SHOWN_TEXT = 120
_SHOWN_BYTES = 32


def decoded(message: Message, limits: Limits) -> Any:
    """Return the plain values of a payload in MessagePack or JSON, or its text; else the payload."""
    payload = message.payload
    first = payload[0] if payload else 0
    if first in _CONTAINERS:
        try:
            return decode_plain(payload, max_bytes=limits.max_decoded_bytes, max_nesting=limits.max_nesting)
        except DecodeError:
            pass
    if first in b"{[" and len(payload) <= _MOST_JSON:
        try:
            return msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    try:  # a character can be cut at the limit
        text = codecs.getincrementaldecoder("utf-8")().decode(payload[:_MOST_TEXT], final=len(payload) <= _MOST_TEXT)
    except UnicodeDecodeError:
        return payload
    begin = text[:_EXAMINED]
    hidden = sum([not (char.isprintable() or char.isspace()) for char in begin])
    return text if hidden * 4 <= len(begin) else payload


def as_text(value: Any, most: int) -> str:
    """Return a value on one line of printable characters, about ``most`` long. Numbers are never cut."""
    if isinstance(value, str):
        return quoted(value, most)
    if isinstance(value, bytes):
        return _bytes(value, most)
    return _short(value, most)


def _short(value: Any, most: int) -> str:
    if isinstance(value, str):
        return f"'{quoted(value, max(4, min(most, _SHOWN_TEXT)))}'"
    if isinstance(value, bytes):
        return f"<{_bytes(value, _SHOWN_BYTES)}>"
    if isinstance(value, Mapping):
        fields = [(name, item) for name, item in value.items() if name != TAG_FIELD]
        tag = value.get(TAG_FIELD)
        name = quoted(tag, _SHOWN_TEXT).rpartition(".")[2] if isinstance(tag, str) else ""
        begin, end, sign = (f"{name}(", ")", "=") if name else ("{", "}", ": ")
        texts = _items([(quoted(name, _SHOWN_TEXT) + sign, item) for name, item in fields[:_SHOWN_ITEMS]], most)
        return begin + _joined(texts, len(fields)) + end
    if isinstance(value, list | tuple):
        if len(value) > _SHOWN_ITEMS:
            lengths = {len(item) if isinstance(item, list) else 0 for item in value}
            if len(lengths) == 1 and (columns := lengths.pop()):
                return f"<{len(value):,} x {columns:,} values>"
            shown = _items([("", item) for item in value[:3]], most)
        else:
            shown = _items([("", item) for item in value], most)
        return f"[{_joined(shown, len(value))}]"
    return quoted(value, _SHOWN_TEXT)


def _items(items: list[tuple[str, Any]], most: int) -> list[str]:
    texts: list[str] = []
    for name, item in items:
        if most <= 0:
            break
        texts.append(name + _short(item, most - len(name)))
        most -= len(texts[-1]) + 2
    return texts


def _joined(texts: list[str], count: int) -> str:
    return ", ".join([*texts, f"… {count - len(texts):,} more"] if len(texts) < count else texts)


def _bytes(value: bytes, most: int) -> str:
    image = read_size(value)
    if image is not None:
        return f"{image[0]} {image[1]}x{image[2]}, {len(value):,} B"
    if len(value) <= _SHOWN_BYTES:
        return value.hex(" ") or "0 B"
    return f"{len(value):,} B" if most <= _SHOWN_BYTES else f"{value[:_SHOWN_BYTES].hex(' ')} … {len(value):,} B"


def as_json(value: Any) -> Any:
    """Return a value of JSON's types: bytes become their hexadecimal digits or, above 32 bytes, their size and shape."""
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bytes):
        return value.hex() if len(value) <= _SHOWN_BYTES else _bytes(value, 0)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def matches(message: Message, value: Any, wanted: str) -> bool:
    """Whether a message has a field, header or key with a value, ``name=value``; else whether a text occurs in the message.

    Args:
        message: the message.
        value: its decoded payload.
        wanted: ``name=value``, in which ``name`` can have dots for nested fields, or a text, whose case is ignored.
    """
    path, equals, text = wanted.partition("=")
    if not equals:
        parts = (message.topic, message.key or "", *message.headers.values(), as_text(value, _MOST_TEXT))
        return any(wanted.lower() in part.lower() for part in parts)
    found = value
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return _equals(found, text) or text in (message.headers.get(path), message.key if path == "key" else None)


def _equals(found: Any, text: str) -> bool:
    if isinstance(found, str):
        return found == text
    if isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(text) == found
        except ValueError:
            return False
    return isinstance(found, bool) and text == str(found).lower()
