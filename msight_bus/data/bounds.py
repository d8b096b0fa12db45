"""Bound the nesting and the memory of a payload before it is decoded: by its type and size if possible, else by its bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from msight_bus.errors import DecodeError

# Estimated memory of decoded values in CPython, in bytes.
_NUMBER = 32
_TEXT = 64
_CONTAINER = 80
_ARRAY_SLOT = 9
_MAP_SLOT = 104
_PLAIN = (dict, list, str, bytes, int, float, bool, type(None))
_SLOT, _FACTORY = 8, 64  # a field of a class, and one with a default factory


class Layout:
    """Limits of a decoded value that follow from its type.

    Attributes:
        nesting: maximum number of nested containers; infinite for ``Any`` and for a recursive type.
        container: maximum memory of a nested container without the entries that the payload has, in bytes.
        unknown: the field whose class cannot be decoded, as ``Class.field``; ``None`` if all can be decoded.
    """

    def __init__(self, kind: Any, container: int = _CONTAINER) -> None:
        """
        Raises:
            NameError, TypeError: an annotation cannot be resolved, or no decoder can be made of it.
        """
        self.container = container
        self.unknown: str | None = None
        self._outer: list[inspect.Type] = []
        self.nesting = self._visit(inspect.type_info(kind), kind.__name__ if isinstance(kind, type) else str(kind))

    def _visit(self, kind: inspect.Type, field: str) -> float:
        if isinstance(kind, inspect.AnyType) or any(kind is outer for outer in self._outer):
            return math.inf
        if isinstance(kind, inspect.CustomType):
            if not any(issubclass(plain, kind.cls) for plain in _PLAIN):
                self.unknown = self.unknown or field
            return math.inf
        is_class = hasattr(kind, "fields")
        if not is_class and not isinstance(kind, inspect.CollectionType | inspect.TupleType | inspect.DictType):
            return max((self._visit(inner, field) for inner, _ in _members(kind)), default=0)
        if is_class and self._outer:
            own: Iterable[inspect.Field] = kind.fields  # type: ignore[attr-defined]
            made = sum(_SLOT if one.default_factory is msgspec.NODEFAULT else _FACTORY for one in own)
            self.container = max(self.container, _CONTAINER + made)
        self._outer.append(kind)
        inside = [
            self._visit(inner, f"{kind.cls.__name__}.{name}" if name else field)  # type: ignore[attr-defined]
            for inner, name in _members(kind)
        ]
        self._outer.pop()
        return 1 + max(inside, default=0)

    def is_within(self, size: int, max_bytes: int, max_nesting: int) -> bool:
        """Return whether every MessagePack value of ``size`` bytes is within the limits."""
        # Per byte, an empty container in an array or as a value in a map takes the most memory.
        return self.nesting <= 1 or (
            self.nesting <= max_nesting and size * (self.container + _ARRAY_SLOT + 3) <= max_bytes
        )


def _members(kind: inspect.Type) -> Iterator[tuple[inspect.Type, str]]:
    """Yield the types inside a type, with the names of fields."""
    for attribute in kind.__struct_fields__:
        value = getattr(kind, attribute)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, inspect.Field):
                yield one.type, one.name
            elif isinstance(one, inspect.Type):
                yield one, ""


# -- MessagePack


def _scalars() -> tuple[list[int], list[int]]:
    """Return, by lead byte, the encoded size of a scalar with its lead byte (0 for other types), and its memory, in bytes."""
    widths, costs = [0] * 256, [0] * 256  # nil, booleans and small integers are shared objects and take no memory
    for lead in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        widths[lead] = 1
    for lead in range(0xA0, 0xC0):
        widths[lead], costs[lead] = 1 + (lead & 0x1F), _TEXT
    widths[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]  # float 32/64, uint 8..64, int 8..64
    costs[0xCA:0xD4] = [_NUMBER] * 10
    return widths, costs


_WIDTHS, _COSTS = _scalars()
_SHARED = re.compile(rb"[\x00-\x7f\xe0-\xff\xc0\xc2\xc3]+")
_BLOBS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: bytes of the length
_MAPS = {0xDE: 2, 0xDF: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
# MessagePack's timestamp extension, which msgspec decodes to a datetime: its three prefixes, and their encoded sizes.
_TIMESTAMPS = {b"\xd6\xff": 6, b"\xd7\xff": 10, b"\xc7\x0c\xff": 15}
_MANY = 16
"""Minimum number of entries for which `_alike` is called."""


def check_bounds(payload: bytes, *, max_bytes: int, max_nesting: int, container: int = _CONTAINER) -> None:
    """Check one MessagePack value without decoding it.

    Args:
        payload: one value; a truncated value is not an error here, because the decoder reports it.
        max_bytes: limit of the estimated memory of the decoded value, in bytes.
        max_nesting: limit of nested containers.
        container: memory of a container without its entries, in bytes.

    Raises:
        DecodeError: a limit is exceeded, or there is an extension type other than MessagePack's timestamp.
    """
    widths, costs = _WIDTHS, _COSTS
    size = len(payload)
    outer: list[int] = []  # values not yet read in the enclosing containers
    due, at, budget = 1, 0, max_bytes
    while at < size:
        while not due:
            if not outer:
                return
            due = outer.pop()
        due -= 1
        lead = payload[at]
        width = widths[lead]
        if width:
            at += width
            budget -= costs[lead]
            if due > _MANY and (run := _SHARED.match(payload, at, at + due)):
                at = run.end()
                due -= at - run.start()
        elif lead in _BLOBS:
            at += 1
            length = int.from_bytes(payload[at : at + _BLOBS[lead]], "big")
            at += _BLOBS[lead] + length
            budget -= _TEXT + length
        elif 0xC7 <= lead <= 0xC9 or 0xD4 <= lead <= 0xD8:
            start = bytes(payload[at : at + 3])
            width = _TIMESTAMPS.get(start[:2]) or _TIMESTAMPS.get(start, 0)
            if not width:
                raise DecodeError("The payload has a MessagePack extension type; only timestamps are accepted")
            at += width
            budget -= _TEXT
        else:
            outer.append(due)
            if len(outer) > max_nesting:
                raise _too_nested(max_nesting)
            at, count, is_map = _container(payload, at, lead)
            due = count * 2 if is_map else count
            # The decoder allocates at most one entry for each received byte, even if the payload announces more entries.
            budget -= container + min(count, size - at) * (_MAP_SLOT if is_map else _ARRAY_SLOT)
            if due > _MANY and not is_map and budget >= 0:
                width, cost = _alike(payload, at, due, container, max_nesting - len(outer))
                if width:
                    count = min(due, (size - at) // width)
                    at, due, budget = at + count * width, due - count, budget - count * cost
        if budget < 0:
            raise _too_large(max_bytes)


def _alike(payload: bytes, at: int, count: int, container: int, containers: int) -> tuple[int, int]:
    """Return the size and the memory of each of ``count`` entries if all have the shape of the first; else zeros.

    The shape is that of a point of a LiDAR or of a small map: at most ``containers`` containers and no large texts.
    """
    leads: list[int] = []  # where the shape has a lead byte
    end, due, cost = at, 1, 0
    while due and end < len(payload):
        lead = payload[end]
        leads.append(end - at)
        due -= 1
        if _WIDTHS[lead]:
            cost += _COSTS[lead]
            end += _WIDTHS[lead]
        elif lead <= 0x9F and containers and due < _MANY:
            containers -= 1
            end, entries, is_map = _container(payload, end, lead)
            due += entries * (1 + is_map)
            cost += container + entries * (_MAP_SLOT if is_map else _ARRAY_SLOT)
        else:
            return 0, 0
    width = end - at
    count = min(count, (len(payload) - at) // width) if width else 0
    stop = at + count * width
    same = all(payload[at + lead : stop : width].count(payload[at + lead]) == count for lead in leads)
    return (width, cost) if count and same else (0, 0)


def _container(payload: bytes, at: int, lead: int) -> tuple[int, int, bool]:
    """Return the offset of the first entry of a map or array, its number of entries, and whether it is a map."""
    if lead <= 0x9F:
        return at + 1, lead & 0x0F, lead <= 0x8F
    width = _MAPS.get(lead) or _ARRAYS.get(lead)
    if width is None:  # 0xC1
        raise DecodeError("The payload has the byte 0xC1, which MessagePack never uses")
    return at + 1 + width, int.from_bytes(payload[at + 1 : at + 1 + width], "big"), lead in _MAPS


# -- JSON

# Possessive and with an optional end of a string: linear, and without a stack, for any bytes.
_BETWEEN_BRACKETS = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)++', re.DOTALL)
_SQUARE = bytes.maketrans(b"{}", b"[]")


def check_json(payload: bytes, layout: Layout, *, max_bytes: int, max_nesting: int) -> None:
    """Check JSON without decoding it. The estimate of the memory also counts the brackets, commas and colons in strings.

    Raises:
        DecodeError: a limit is exceeded.
    """
    containers = payload.count(b"[") + payload.count(b"{")
    characters = len(payload) * (1 if payload.isascii() and b"\\u" not in payload else 4)
    entries = (payload.count(b",") + containers) * (_TEXT + _ARRAY_SLOT) + payload.count(b":") * _MAP_SLOT
    if characters + entries + containers * layout.container > max_bytes:
        raise _too_large(max_bytes)
    if containers > max_nesting:
        brackets = _BETWEEN_BRACKETS.sub(b"", payload).translate(_SQUARE)
        for _ in range(max_nesting):
            brackets = brackets.replace(b"[]", b"")  # removes the innermost level
        if b"[]" in brackets:
            raise _too_nested(max_nesting)


def _too_nested(max_nesting: int) -> DecodeError:
    """Return the error of a payload that nests too many levels."""
    return DecodeError(f"The payload nests maps and arrays more than {max_nesting} levels deep (MSIGHT_MAX_NESTING)")


def _too_large(max_bytes: int) -> DecodeError:
    return DecodeError(
        f"The payload would take more than {max_bytes} bytes of memory when decoded (MSIGHT_MAX_DECODED_BYTES)"
    )
