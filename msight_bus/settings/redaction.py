"""Secrets that come back: a peer may quote in its error what it was sent, as Redis does where AUTH was renamed."""

from __future__ import annotations

from collections.abc import Iterable

from msight_bus.errors import quoted

_TELLING = 8
"""Characters of a secret that give it away; a peer may cut what it quotes."""


def chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, the last first."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found


def hide_secrets(error: BaseException, secrets: Iterable[str]) -> None:
    """Withhold the texts of an error, and of all that caused it, that quote a secret."""
    heads = [secret[:_TELLING] for secret in secrets if secret]
    for link in chain(error):
        text = f"{link} {link.args}"
        if any(head in text for head in heads):
            link.args = ("the peer's words are withheld, since they quote a secret",)


def quote_texts(error: BaseException) -> None:
    """Escape the texts of an error, and of all that caused it: a traceback shows them as they are."""
    for link in chain(error):
        if not str(link).isprintable() and len(link.args) == 1 and not isinstance(link, UnicodeError):
            link.args = (quoted(link),)
