"""Secrets that can be recognized wherever they come to light, and a watch over all that could bring them there."""

from __future__ import annotations

import base64
import logging
import traceback
import warnings
from collections.abc import Iterable
from urllib.parse import quote

_SHORTEST = 64
"""Of a canary: an encrypted record that holds one is longer than any alert (TLS 1.3, RFC 8446, 5.2)."""

_known: set[str] = set()


def canary(label: str) -> str:
    """A secret of at least 64 characters, the same for the same label."""
    return remember(f"c4n4ry-{label.replace(' ', '-')}-" + "s1ng" * (_SHORTEST // 4))


def remember(secret: str) -> str:
    """A secret that was made elsewhere is one to look for too."""
    _known.add(secret)
    return secret


def found_in(text: str) -> set[str]:
    """The secrets that ``text`` shows, plain or in a usual coat. Half of one counts."""
    return {secret for secret in _known if any(shape in text for shape in _shapes(secret))}


def _shapes(secret: str) -> Iterable[str]:
    half = secret[: len(secret) // 2]
    raw = secret.encode()
    yield half
    yield quote(half, safe="")
    yield raw[: len(raw) // 2].hex()
    for start in range(3):  # where a secret begins within a longer text, base64 has three forms
        encoded = base64.b64encode(raw[start:]).decode()
        yield encoded[: len(encoded) // 2]


class Watch(logging.Handler):
    """Everything that is logged, at every level, and whatever else it is shown."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def show(self, *things: object) -> None:
        """Show an object as people see it: an error with its traceback and all its causes, else repr and str."""
        for thing in things:
            self.texts += [repr(thing), str(thing)]
            if isinstance(thing, warnings.WarningMessage):
                self.texts.append(str(thing.message))
            if isinstance(thing, BaseException):
                self.texts += traceback.format_exception(thing)
                self._show_chain(thing, set())

    def _show_chain(self, error: BaseException, seen: set[int]) -> None:
        """A traceback leaves out the context behind ``from None``; a debugger or an error tracker does not."""
        for link in (error.__cause__, error.__context__):
            if link is not None and id(link) not in seen:
                seen.add(id(link))
                self.texts += [repr(link), str(link), repr(link.args)]
                self._show_chain(link, seen)

    def check(self) -> None:
        """Fail if a secret was seen."""
        for text in self.texts:
            shown = found_in(text)
            assert not shown, f"{len(shown)} secrets are shown in {text[:80]!r}..."
