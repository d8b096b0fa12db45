"""Every error that msight_bus raises.

    BusError
    ├── ConfigError             one or more settings are invalid; nothing was connected
    ├── TopicError              a topic name is not valid
    ├── UnsupportedError        the backend does not support the operation
    ├── MessageTooLargeError    a message exceeds a limit of the broker or the bus; nothing was sent
    ├── DecodeError             a payload cannot be decoded
    ├── ConnectionLostError     the broker cannot be reached, refused the connection, or the connection was lost
    ├── AuthenticationError     credentials, a certificate or a permission was refused
    ├── PublishTimeoutError     the outcome of a publish is unknown; a retry may duplicate
    ├── DrainTimeoutError       the bus closed before everything was delivered
    ├── ClosedError             the bus, publisher or subscription is closed
    ├── BusyError               a second task iterates a subscription
    ├── PayloadError            a payload to publish is neither bytes-like nor Data, or not of the publisher's type
    └── HeaderError             a header or key is not valid on every backend

An error of a client library is raised as one of these, ``from`` the original.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST_QUOTED = 300


def described(error: BaseException) -> str:
    """Return the class name and text of an exception; the text is replaced if ``__str__`` fails."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return f"{name} (no text: __str__ failed)"
    return f"{name}: {text}" if text else name


def quoted(text: object, limit: int = _LONGEST_QUOTED) -> str:
    """Return the text of a peer as printable text on one line.

    Control characters, line ends and bidirectional formatting characters are escaped as in a Python literal, because the
    text of a broker is printed on terminals and written to logs.

    Args:
        text: text; bytes are decoded as UTF-8, any other object is converted with ``str``.
        limit: maximum number of characters; a longer text is truncated and ends in ``...``.
    """
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    shown = "".join(
        [char if char.isprintable() else char.encode("unicode_escape").decode() for char in decoded[: limit + 1]]
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, as in ``1 message`` and ``1,000 messages``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


class BusError(Exception):
    """The base class of all errors of msight_bus. Every error can be pickled and copied, with its fields and notes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild without ``__init__``, whose keyword arguments ``args`` does not hold."""
        return _rebuild, (type(self), self.args), self.__dict__ or None


def _rebuild(kind: type[BusError], args: tuple[object, ...]) -> BusError:
    error = kind.__new__(kind, *args)
    error.args = args  # OSError sets them in __init__ only
    return error


def fresh(error: BusError) -> BusError:
    """Return a copy of a stored error to raise: an error that is raised repeatedly would collect every traceback."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    copied.__suppress_context__ = error.__suppress_context__
    return copied


class ConfigError(BusError, ValueError):
    """One or more settings are invalid; nothing was connected.

    Attributes:
        problems: one sentence for each invalid variable: its name, the accepted values and an example. Never contains the
            value of a secret.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class TopicError(BusError, ValueError):
    """A topic or group name is not valid; nothing was sent.

    Attributes:
        topic: the rejected name.
    """

    def __init__(self, message: str, *, topic: object = None) -> None:
        super().__init__(message)
        self.topic = topic


class UnsupportedError(BusError):
    """The backend does not support the operation; the text names the backends that do."""


class MessageTooLargeError(BusError, ValueError):
    """A message exceeds a limit; the message was not sent.

    Attributes:
        size: bytes of the message, headers included; ``None`` if the broker did not report the size.
        limit: maximum in bytes; ``None`` if the broker did not report the limit.
    """

    def __init__(self, message: str, *, size: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


def too_large(broker: str, size: int, limit: int, where: str = "") -> MessageTooLargeError:
    """Return the error of a message that exceeds a limit.

    Args:
        broker: name of the broker.
        size: bytes of the message with its metadata.
        limit: maximum in bytes.
        where: the broker's setting that defines the limit; empty if it has none.
    """
    settings = f"{where}, or MSIGHT_MAX_MESSAGE_BYTES" if where else "MSIGHT_MAX_MESSAGE_BYTES"
    return MessageTooLargeError(
        f"Message too large: {size} bytes with metadata; {broker} accepts {limit} ({settings}).",
        size=size,
        limit=limit,
    )


class DecodeError(BusError, ValueError):
    """A payload cannot be decoded."""


class ConnectionLostError(BusError, ConnectionError):
    """The broker cannot be reached, or the connection was lost."""


class AuthenticationError(BusError, PermissionError):
    """The broker refused credentials, a certificate or a permission, or the broker's certificate is not trusted."""


class PublishTimeoutError(BusError, TimeoutError):
    """A publish was not confirmed in time. The outcome is unknown: publishing again may duplicate the message."""


def late_publish(topic: str, within: float) -> PublishTimeoutError:
    """Return the error of a message that was sent and not acknowledged within ``within`` seconds."""
    return PublishTimeoutError(
        f"The message on {topic!r} was not acknowledged within {within:g} s (MSIGHT_PUBLISH_TIMEOUT); a retry may duplicate the "
        "message, because it may still arrive."
    )


def aborted() -> ConnectionLostError:
    """Return the error of operations that the broker did not confirm before the deadline for closing the bus."""
    return ConnectionLostError(
        "The broker did not confirm before the deadline for closing the bus; messages in flight may have been delivered."
    )


class DrainTimeoutError(BusError, TimeoutError):
    """The drain deadline passed; the bus is closed.

    Attributes:
        left: number of messages not delivered or not finished, by place: ``"subscription a.b"``, ``"node detector"``.
    """

    def __init__(self, message: str, *, left: Mapping[str, int]) -> None:
        super().__init__(message)
        self.left = dict(left)


class ClosedError(BusError):
    """The bus, publisher or subscription was closed before this call."""


class BusyError(BusError, RuntimeError):
    """A second task iterates a subscription; a subscription has one consumer at a time."""


class PayloadError(BusError, TypeError):
    """A payload to publish is neither bytes-like nor a ``Data`` value, or not of the publisher's type."""


class HeaderError(BusError, ValueError):
    """A header or key is not valid: not every backend would deliver the value unchanged."""


class CapabilityWarning(UserWarning):
    """The backend provides a weaker guarantee than requested; the text names the alternatives."""


def user_stacklevel() -> int:
    """Return the ``stacklevel`` of a warning that shows the user's line, even if a task runs the caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level


_OURS = ("msight_bus", "asyncio", "contextlib", "uvloop")
