"""Remove secrets from errors: a server can quote a received command in an error, as Redis does if AUTH was renamed."""

from __future__ import annotations

from collections.abc import Iterable

from msight_bus.errors import quoted

_PREFIX_CHARACTERS = 8
"""Number of first characters of a secret that are searched for, because a server can truncate a quoted command."""


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes and contexts, the error first."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found


def hide_secrets(error: BaseException, secrets: Iterable[str]) -> None:
    """Replace each text that contains a secret, in an error and its causes."""
    prefixes = [secret[:_PREFIX_CHARACTERS] for secret in secrets if secret]
    for link in chain(error):
        text = f"{link} {link.args}"
        if any(prefix in text for prefix in prefixes):
            link.args = ("the server's text is withheld because it contains a secret",)


def quote_texts(error: BaseException) -> None:
    """Escape unprintable characters in the texts of an error and its causes, because a traceback shows the texts unescaped."""
    for link in chain(error):
        if not str(link).isprintable() and len(link.args) == 1 and not isinstance(link, UnicodeError):
            link.args = (quoted(link),)
