"""Parse lists of servers: a Python-style list, a JSON list, or comma-separated entries. Nothing is evaluated."""

from __future__ import annotations

import re

MAX_CHARACTERS = 64 * 1024
MAX_ENTRIES = 256
MAX_ENTRY_CHARACTERS = 512

_QUOTED = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*(?:,|\Z)\s*""", re.DOTALL)
_IPV6 = re.compile(r"\[[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def split_list(text: str) -> list[str]:
    """Return the entries of a list.

    Args:
        text: ``['a', "b"]``, or ``a, b``; the first entry can be an IPv6 address in brackets.

    Raises:
        ValueError: the list is malformed, empty or exceeds a limit. The error does not quote an entry, which can contain a
            password.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
    text = text.strip()
    if text.startswith("[") and not _IPV6.match(text):
        if not text.endswith("]"):
            raise ValueError("its bracket is not closed")
        entries = _split_quoted(text[1:-1])
    else:
        entries = [entry.strip() for entry in text.split(",")]
    return check_entries(entries)


def check_entries(entries: list[str]) -> list[str]:
    """Return ``entries`` if their number and lengths are within the limits.

    Raises:
        ValueError: a limit is exceeded, or an entry is empty.
    """
    if not entries or entries == [""]:
        raise ValueError("it is empty")
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"it has more than {MAX_ENTRIES} entries")
    for number, entry in enumerate(entries, 1):
        if not entry or len(entry) > MAX_ENTRY_CHARACTERS:
            raise ValueError(f"entry {number} has {len(entry)} characters instead of 1 to {MAX_ENTRY_CHARACTERS}")
    return entries


def _split_quoted(content: str) -> list[str]:
    entries: list[str] = []
    at = 0
    content = content.strip()
    while at < len(content):
        match = _QUOTED.match(content, at)
        if match is None:
            raise ValueError(f"entry {len(entries) + 1} is not a quoted string")
        entries.append(_ESCAPE.sub(_unescape, match[1] if match[2] is None else match[2]))
        at = match.end()
    return entries


def _unescape(escape: re.Match[str]) -> str:
    # Addresses are printable ASCII, for which neither Python nor JSON writes another escape sequence.
    if escape[1] not in "\\'\"/":
        raise ValueError("it has an unsupported escape sequence")
    return escape[1]
