"""Every error that msight_bus raises.

    BusError
    ├── ConfigError             a setting, or several at once, is wrong; nothing was connected
    ├── TopicError              a topic name cannot be used
    ├── UnsupportedError        this backend cannot do what was asked
    ├── MessageTooLargeError    over the broker's or the bus's limit; nothing was sent
    ├── DecodeError             a payload is not the data it should be
    ├── ConnectionLostError     the broker cannot be reached, refused the connection, or went away
    ├── AuthenticationError     credentials, certificate or permission were refused
    ├── PublishTimeoutError     the outcome of a publish is unknown; a retry may duplicate
    ├── DrainTimeoutError       the bus closed before everything was delivered
    ├── ClosedError             the bus, publisher or subscription is closed
    ├── BusyError               a subscription has one consumer at a time
    ├── PayloadError            what was to be published is neither bytes nor Data
    └── HeaderError             a header or key cannot travel on every backend

A client library's own error arrives as one of these, raised ``from`` the original.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST_QUOTED = 300


def described(error: BaseException) -> str:
    """Return the class of an exception and its text; the text of somebody's class may not be to be had."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return f"{name} (its __str__ fails)"
    return f"{name}: {text}" if text else name


def quoted(text: object, limit: int = _LONGEST_QUOTED) -> str:
    """Return what a peer said as printable text on one line, of at most ``limit`` characters.

    Control characters, line ends and marks that turn the direction of text are escaped as in a Python literal: what a
    broker says reaches terminals and logs.

    Args:
        text: bytes are read as UTF-8; of anything else its ``str``.
        limit: characters; a longer text ends in ``...``.
    """
    told = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    shown = "".join([one if one.isprintable() else one.encode("unicode_escape").decode() for one in told[: limit + 1]])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


class BusError(Exception):
    """Root of everything that msight_bus raises. Every error can be pickled and copied, with its fields and notes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild without ``__init__``, whose keyword arguments ``args`` does not hold."""
        return _rebuild, (type(self), self.args), self.__dict__ or None


def _rebuild(kind: type[BusError], args: tuple[object, ...]) -> BusError:
    error = kind.__new__(kind, *args)
    error.args = args  # OSError leaves them to its __init__
    return error


def fresh(error: BusError) -> BusError:
    """A copy of a stored error, to be raised: one object that is raised again and again would gather every traceback."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    copied.__suppress_context__ = error.__suppress_context__
    return copied


class ConfigError(BusError, ValueError):
    """One or several settings are wrong.

    Attributes:
        problems: one sentence for each wrong variable; each names the variable, says what is accepted and shows
            an example. No value of a secret is ever part of it.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class TopicError(BusError, ValueError):
    """A topic name cannot be used; ``topic`` is the name as it was given."""

    def __init__(self, message: str, *, topic: object = None) -> None:
        super().__init__(message)
        self.topic = topic


class UnsupportedError(BusError):
    """The chosen backend cannot do what was asked; the message names the backends that can."""


class MessageTooLargeError(BusError, ValueError):
    """A message is over a limit; it was not sent.

    Attributes:
        size: bytes that the message takes, headers included; ``None`` if the broker refused it without saying.
        limit: bytes that are allowed; ``None`` if the broker did not say.
    """

    def __init__(self, message: str, *, size: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


def too_large(broker: str, size: int, limit: int, where: str) -> MessageTooLargeError:
    """Make the error of a message over a limit.

    Args:
        broker: its name.
        size: bytes of the message with its metadata.
        limit: maximum in bytes.
        where: the setting that defines the limit.
    """
    return MessageTooLargeError(
        f"Message too large: {size} bytes with metadata; {broker} accepts {limit} ({where}, or MSIGHT_MAX_MESSAGE_BYTES).",
        size=size,
        limit=limit,
    )


class DecodeError(BusError, ValueError):
    """A payload is not the data it was expected to be."""


class ConnectionLostError(BusError, ConnectionError):
    """The broker cannot be reached, or the connection to it was cut."""


class AuthenticationError(BusError, PermissionError):
    """The broker refused credentials, a certificate or a permission, or its own certificate was refused."""


class PublishTimeoutError(BusError, TimeoutError):
    """A publish was not confirmed in time. Its outcome is unknown: publishing again may duplicate it."""


def late_publish(topic: str, within: float) -> PublishTimeoutError:
    """The error of a message that was handed over and not acknowledged within ``within`` seconds."""
    return PublishTimeoutError(
        f"The message on {topic!r} was not acknowledged within {within:g} s (MSIGHT_PUBLISH_TIMEOUT); it may still arrive, "
        "so a retry may duplicate it."
    )


def aborted() -> ConnectionLostError:
    """Return the error of everything that the broker had not confirmed at the deadline of a stop."""
    return ConnectionLostError(
        "The broker did not confirm before the deadline for closing the bus; messages in flight may have been delivered."
    )


class DrainTimeoutError(BusError, TimeoutError):
    """The drain deadline passed and the bus was closed.

    Attributes:
        left: what was not delivered or confirmed, by place (``"subscription a.b"``, ``"publishes"``), in messages.
    """

    def __init__(self, message: str, *, left: Mapping[str, int]) -> None:
        super().__init__(message)
        self.left = dict(left)


class ClosedError(BusError):
    """The bus, publisher or subscription was closed before this call."""


class BusyError(BusError, RuntimeError):
    """A second task iterates a subscription that another task is waiting on."""


class PayloadError(BusError, TypeError):
    """What was to be published is neither bytes-like nor a ``Data`` value."""


class HeaderError(BusError, ValueError):
    """A header or key cannot be carried unchanged by every backend."""


class CapabilityWarning(UserWarning):
    """The backend does something weaker than what was asked; the text names what to switch to."""


def level_of_the_user() -> int:
    """Return the ``stacklevel`` of a warning that shows the user's line, also where a task runs the caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level


_OURS = ("msight_bus", "asyncio", "contextlib", "uvloop")
