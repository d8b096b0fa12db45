"""Check the nesting and the decoded size of MessagePack before decoding."""

from __future__ import annotations

from msight_bus.errors import DecodeError

# Estimated memory of decoded values in CPython, in bytes.
_NUMBER = 32
_TEXT = 64
_CONTAINER = 80
_ARRAY_SLOT = 9
_MAP_SLOT = 104


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
_BLOBS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: bytes of the length
_MAPS = {0xDE: 2, 0xDF: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
# MessagePack's timestamp extension, which msgspec decodes to a datetime: its three prefixes, and their encoded sizes.
_TIMESTAMPS = {b"\xd6\xff": 6, b"\xd7\xff": 10, b"\xc7\x0c\xff": 15}


def check_bounds(payload: bytes, *, max_bytes: int, max_nesting: int) -> None:
    """Check one MessagePack value without decoding it.

    Args:
        payload: one value; a truncated value is not an error here, because the decoder reports it.
        max_bytes: limit of the estimated memory of the decoded value, in bytes.
        max_nesting: limit of nested containers.

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
                raise DecodeError(
                    f"The payload nests maps and arrays more than {max_nesting} levels deep (MSIGHT_MAX_NESTING)"
                )
            at, count, is_map = _container(payload, at, lead)
            due = count * 2 if is_map else count
            # The decoder allocates at most one entry per byte that is present, whatever the length says.
            budget -= _CONTAINER + min(count, size - at) * (_MAP_SLOT if is_map else _ARRAY_SLOT)
        if budget < 0:
            raise DecodeError(
                f"The payload would take more than {max_bytes} bytes of memory when decoded (MSIGHT_MAX_DECODED_BYTES)"
            )


def _container(payload: bytes, at: int, lead: int) -> tuple[int, int, bool]:
    """Return the offset of the first entry of a map or array, its number of entries, and whether it is a map."""
    if lead <= 0x9F:
        return at + 1, lead & 0x0F, lead <= 0x8F
    width = _MAPS.get(lead) or _ARRAYS.get(lead)
    if width is None:  # 0xC1
        raise DecodeError("The payload has the byte 0xC1, which MessagePack never uses")
    return at + 1 + width, int.from_bytes(payload[at + 1 : at + 1 + width], "big"), lead in _MAPS
