"""Recognizable secrets, and a check that no log line, error or ``repr`` contains one."""

from __future__ import annotations

import base64
import logging
import traceback
import warnings
from collections.abc import Iterable
from urllib.parse import quote

_SHORTEST = 64
"""Length of a canary: an encrypted record with one is longer than any alert (TLS 1.3, RFC 8446, 5.2)."""

_known: set[str] = set()


def canary(label: str) -> str:
    """Return a secret of at least 64 characters, the same for the same label."""
    return remember(f"c4n4ry-{label.replace(' ', '-')}-" + "s1ng" * (_SHORTEST // 4))


def remember(secret: str) -> str:
    """Register a secret that was created elsewhere."""
    _known.add(secret)
    return secret


def found_in(text: str) -> set[str]:
    """Return the secrets that ``text`` contains, plain or in a common encoding, whole or by half."""
    return {secret for secret in _known if any(shape in text for shape in _shapes(secret))}


def _shapes(secret: str) -> Iterable[str]:
    half = secret[: len(secret) // 2]
    raw = secret.encode()
    yield half
    yield quote(half, safe="")
    yield raw[: len(raw) // 2].hex()
    for start in range(3):  # the base64 of a secret within a longer text has three forms, by its offset
        encoded = base64.b64encode(raw[start:]).decode()
        yield encoded[: len(encoded) // 2]


class Watch(logging.Handler):
    """Collects all log records, at every level, and the objects passed to it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def show(self, *things: object) -> None:
        """Add the text of an object: an error with its traceback and causes, otherwise ``repr`` and ``str``."""
        for thing in things:
            self.texts += [repr(thing), str(thing)]
            if isinstance(thing, warnings.WarningMessage):
                self.texts.append(str(thing.message))
            if isinstance(thing, BaseException):
                self.texts += traceback.format_exception(thing)
                self._show_chain(thing, set())

    def _show_chain(self, error: BaseException, seen: set[int]) -> None:
        """Add the context that ``from None`` hides from a traceback, but not from a debugger or error tracker."""
        for link in (error.__cause__, error.__context__):
            if link is not None and id(link) not in seen:
                seen.add(id(link))
                self.texts += [repr(link), str(link), repr(link.args)]
                self._show_chain(link, seen)

    def check(self) -> None:
        """Fail if a text contains a secret."""
        for text in self.texts:
            shown = found_in(text)
            assert not shown, f"{len(shown)} secrets are shown in {text[:80]!r}..."
