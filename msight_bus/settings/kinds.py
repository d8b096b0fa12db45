"""The kinds of values that variables take: one parser, one phrase and one example for each.

A kind stands in an annotation, ``Annotated[int, whole(1, 65535, "6379")]``. pydantic calls its parser;
messages and the table of variables take their words from it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

from msight_bus.settings.addresses import HostPort, NatsServer, parse_host, parse_host_port, parse_nats_server
from msight_bus.settings.secret_file import MAX_TEXT, SecretFile
from msight_bus.settings.server_list import check_entries, split_list


@dataclass(frozen=True, slots=True)
class Kind:
    """What a variable takes.

    Attributes:
        accepts: completes "it must be ...".
        example: a value as a shell takes it without quotes.
        parse: text of the environment, or the value itself, to the value. A ValueError's text is the reason;
            it quotes nothing of the value.
        secret: the value is never shown, and may come from a file.
        shown: whether a wrong value may be shown. A list of servers may hold a password.
    """

    accepts: str
    example: str
    parse: Callable[[Any], Any]
    secret: bool = False
    shown: bool = True

    def read(self, value: Any) -> Any:
        """Parse a value. What comes from the environment is wrapped up to here, whatever it is.

        Raises:
            ValueError: it is not what is accepted.
        """
        if isinstance(value, SecretFile) and self.secret:
            self.parse(value.get_secret_value())
            return value
        return self.parse(value.get_secret_value() if isinstance(value, SecretStr) else value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """pydantic's hook: validate with ``read``; in JSON, show what ``str`` shows."""
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(_to_json, when_used="json"),
        )


def whole(lowest: int, highest: int, example: str) -> Kind:
    """A whole number within bounds."""

    def parse(value: Any) -> int:
        digits = value.strip() if isinstance(value, str) else ""
        if digits.isascii() and digits.isdigit() and len(digits) <= 20:
            value = int(digits)
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError
        return value

    return Kind(f"a whole number from {lowest} to {highest}", example, parse)


def choice(*words: str, example: str) -> Kind:
    """One of some words, in any case."""
    canonical = {word.lower(): word for word in words}

    def parse(value: Any) -> str:
        found = canonical.get(value.strip().lower()) if isinstance(value, str) else None
        if found is None:
            raise ValueError
        return found

    return Kind(f"one of {', '.join(words)}", example, parse)


def _parse_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in ("true", "1", "yes", "false", "0", "no"):
        raise ValueError
    return word in ("true", "1", "yes")


def _parse_seconds(value: Any) -> float:
    try:
        seconds = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 < seconds <= 86400:
        raise ValueError
    return seconds


def _parse_patience(value: Any) -> float:
    if value == math.inf or (isinstance(value, str) and value.strip().lower() == "inf"):
        return math.inf
    return _parse_seconds(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError
    return value


def _parse_name(value: Any) -> str:
    text = _text(value)
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


def _parse_secret(value: Any) -> SecretStr:
    text = _text(value)
    # An encoding error of a client library later on would carry the secret.
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("it is not UTF-8")
    return SecretStr(text)


def _parse_path(value: Any) -> str:
    return _parse_name(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _parse_file(value: Any) -> str:
    path = _parse_path(value)
    try:
        found = Path(path).is_file()
    except OSError:  # too long a name; the error would quote it
        found = False
    if not found:
        raise ValueError("there is no such file")
    if not os.access(path, os.R_OK):
        raise ValueError("this user may not read it")
    return path


def _parse_socket_path(value: Any) -> str:
    path = _parse_path(value)
    if len(os.fsencode(path)) > 107:
        raise ValueError
    return path


def _entries(value: Any) -> list[Any]:
    if isinstance(value, str):
        return split_list(value)
    entries = list(value) if isinstance(value, list | tuple) else []
    check_entries([str(entry) for entry in entries])
    return entries


def _list_of(server: type[Any], parse: Callable[[str], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def parse_all(value: Any) -> tuple[Any, ...]:
        servers = []
        for number, entry in enumerate(_entries(value), 1):
            try:
                servers.append(entry if isinstance(entry, server) else parse(str(entry)))
            except ValueError as error:
                raise ValueError(f"entry {number}: {error}") from None
        return tuple(servers)

    return parse_all


def _parse_host_text(value: Any) -> str:
    return parse_host(_text(value))


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(entry) for entry in value]
    return str(value) if isinstance(value, SecretStr) else value


Flag = Annotated[bool, Kind("true, 1, yes, false, 0 or no", "true", _parse_flag)]
Port = Annotated[int, whole(1, 65535, "6379")]
Count = Annotated[int, whole(1, 1_000_000_000, "1000")]
CountOrZero = Annotated[int, whole(0, 1_000_000_000, "3")]
Bytes = Annotated[int, whole(1, 1 << 40, "1048576")]
Seconds = Annotated[float, Kind("a number of seconds above 0, at most 86400", "2.5", _parse_seconds)]
Patience = Annotated[float, Kind("a number of seconds above 0, at most 86400, or inf", "60", _parse_patience)]
Name = Annotated[str, Kind("a name of printable characters", "edge_ne", _parse_name)]
LogLevel = Annotated[str, choice(*logging.getLevelNamesMapping(), example="INFO")]
Host = Annotated[str, Kind("a host name or an IP address", "localhost", _parse_host_text)]
ReadableFile = Annotated[str, Kind("the path of a file", "/etc/msight/ca.pem", _parse_file)]
SocketPath = Annotated[str, Kind("a path of at most 107 bytes", "/run/redis.sock", _parse_socket_path)]
Secret = Annotated[SecretStr, Kind("a text", "...", _parse_secret, secret=True, shown=False)]
HostPorts = Annotated[
    tuple[HostPort, ...],
    Kind("a list of host:port", "a:9092,b:9092", _list_of(HostPort, parse_host_port), shown=False),
]
NatsServers = Annotated[
    tuple[NatsServer, ...],
    Kind(
        "a list of nats://host:port or tls://host:port",
        "nats://a:4222,nats://b:4222",
        _list_of(NatsServer, parse_nats_server),
        shown=False,
    ),
]
