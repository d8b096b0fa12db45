"""The types of the values of variables, each with a parser, a phrase for errors and an example.

A parser takes the text of an environment variable or a value passed in code. The text of its ``ValueError`` is the reason, or
empty if the phrase explains the error; the text never quotes the value.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from msight_bus.settings.addresses import HostPort, NatsServer, parse_host, parse_host_port, parse_nats_server
from msight_bus.settings.secret import MASK, MAX_TEXT, Secret, SecretFile
from msight_bus.settings.server_list import check_entries, split_list
from msight_bus.topic_map import parse_topic_map


@dataclass(frozen=True, slots=True)
class ValueType:
    """The type of the values of a variable.

    Attributes:
        accepts: phrase that completes "must be ...".
        example: a value as a shell needs it.
        parse: returns the value, or raises ValueError.
        secret: whether the value is never shown and can be read from a file.
        shown: whether an error shows a wrong value. A list of servers is not shown, because it can contain a password.
    """

    accepts: str
    example: str
    parse: Callable[[Any], Any]
    secret: bool = False
    shown: bool = True


def whole(lowest: int, highest: int, example: str, of: str = "") -> ValueType:
    """Return the type of whole numbers from ``lowest`` to ``highest``; ``of`` names the unit."""

    def parse(value: Any) -> int:
        digits = value.strip() if isinstance(value, str) else ""
        if digits.isascii() and digits.isdigit() and len(digits) <= 20:
            value = int(digits)
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError
        return value

    return ValueType(f"a whole number{of} from {lowest} to {highest}", example, parse)


def choice(literal: object, example: str) -> ValueType:
    """Return the type of the words of a ``Literal``, in upper or lower case."""
    canonical: dict[str, str] = {word.lower(): word for word in get_args(literal)}

    def parse(value: Any) -> str:
        found = canonical.get(value.strip().lower()) if isinstance(value, str) else None
        if found is None:
            raise ValueError
        return found

    return ValueType(f"one of {', '.join(canonical.values())}", example, parse)


_TOPIC_SUFFIX = re.compile(r"\.?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_DECIMAL = re.compile(r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONGEST_DECIMAL = 50
"""Maximum number of characters; matching takes quadratic time."""

_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _parse_flag(value: Any) -> bool:
    flag = value if isinstance(value, bool) else _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError
    return flag


def _parse_seconds(value: Any) -> float:
    if isinstance(value, str) and len(value) <= _LONGEST_DECIMAL and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.001 <= value <= 86400:
        raise ValueError
    return float(value)


def _parse_patience(value: Any) -> float:
    text = value.strip().lower() if isinstance(value, str) else repr(value) if isinstance(value, float) else ""
    return math.inf if text == "inf" else _parse_seconds(value)


def _parse_text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError
    return value


def _parse_name(value: Any) -> str:
    text = _parse_text(value)
    if not text.isprintable():
        raise ValueError("it has unprintable characters")
    return text


def _parse_secret(value: Any) -> Secret:
    text = _parse_text(value.get_secret_value() if isinstance(value, Secret) else value)
    if any(
        0xD800 <= ord(character) <= 0xDFFF for character in text
    ):  # the encoding error of a client library would contain the secret
        raise ValueError("it is not UTF-8")
    if text == MASK:
        raise ValueError("it is the mask of a dump instead of a secret")
    return value if isinstance(value, SecretFile) else Secret(text)


def _parse_path(value: Any) -> str:
    return _parse_name(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _parse_file(value: Any) -> str:
    path = _parse_path(value)
    try:
        found = Path(path).is_file()
    except OSError:  # the path is too long; the error would quote it
        found = False
    if not found:
        raise ValueError("there is no such file")
    if not os.access(path, os.R_OK):
        raise ValueError("this user has no permission to read the file")
    return path


def _parse_topic_suffix(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 50 or not _TOPIC_SUFFIX.fullmatch(value):
        raise ValueError
    return value


def _parse_socket_path(value: Any) -> str:
    path = _parse_path(value)
    if len(os.fsencode(path)) > 107:
        raise ValueError
    return path


def _list_of(parse: Callable[[str], HostPort | NatsServer]) -> Callable[[Any], tuple[Any, ...]]:
    def parse_all(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            entries = split_list(value)
        elif isinstance(value, list | tuple):
            entries = check_entries([e.get_secret_url() if isinstance(e, NatsServer) else str(e) for e in value])
        else:
            raise ValueError("it is not a list")  # noqa: TRY004  # every wrong value is a ValueError
        servers = []
        for number, entry in enumerate(entries, 1):
            try:
                servers.append(parse(entry))
            except ValueError as error:
                raise ValueError(f"entry {number}: {error}") from None
        return tuple(servers)

    return parse_all


FLAG = ValueType("true, 1, yes, false, 0 or no", "true", _parse_flag)
PORT = whole(1, 65535, "6379")
COUNT = whole(1, 1_000_000_000, "1000")
COUNT_OR_ZERO = whole(0, 1_000_000_000, "3")
BYTES = whole(1, 1 << 40, "1048576", " of bytes")
LINGER = whole(0, 60_000, "5", " of milliseconds")
SECONDS = ValueType("a number of seconds from 0.001 to 86400", "2.5", _parse_seconds)
PATIENCE = ValueType("a number of seconds from 0.001 to 86400, or inf", "60", _parse_patience)
NAME = ValueType("a name of printable characters", "edge_ne", _parse_name)
HOST = ValueType("a host name or an IP address", "localhost", lambda value: parse_host(_parse_text(value)))
PEM_FILE = ValueType("the path of a file", "/etc/msight/tls.pem", _parse_file)
CREDS_FILE = ValueType("the path of a file", "/etc/msight/user.creds", _parse_file)
TOPIC_SUFFIX = ValueType("the end of a topic name, of letters, digits, '_', '-' and '.'", ".dead", _parse_topic_suffix)
TOPIC_MAP = ValueType(
    "a JSON object that maps names on the broker to topics",
    """'{"camera@gs ne": "camera.gs_ne"}'""",
    parse_topic_map,
)
SOCKET_PATH = ValueType("a path of at most 107 bytes", "/run/redis.sock", _parse_socket_path)
SECRET = ValueType(f"a text of 1 to {MAX_TEXT} characters", "s3cret", _parse_secret, secret=True, shown=False)
HOST_PORTS = ValueType("a list of host:port", "a:9092,b:9092", _list_of(parse_host_port), shown=False)
_NATS_URLS = "a list of nats://host:port or tls://host:port"
NATS_SERVERS = ValueType(_NATS_URLS, "nats://a:4222,nats://b:4222", _list_of(parse_nats_server), shown=False)
