"""Minimal Redis and NATS servers for tests, which parse every command strictly."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from tests.support.listeners import Serve

Reply = Callable[["Command"], bytes | None]

INFO = {"server_id": "x", "version": "2.15.1", "proto": 1, "headers": True, "max_payload": 1048576}


class Command(NamedTuple):
    """A received command: its verb, its words, and the data after its line."""

    verb: str
    words: tuple[bytes, ...]
    headers: bytes = b""
    payload: bytes = b""


class MalformedError(Exception):
    """The received data is not a sequence of well-formed commands."""


# -- NATS

_LINE = re.compile(rb"(CONNECT|PING|PONG|SUB|UNSUB|HPUB)(?: ([^\r\n]+))?")


def read_nats(data: bytes) -> tuple[list[Command], bytes]:
    """Parse ``data`` strictly; return the commands and the incomplete rest."""
    commands: list[Command] = []
    while b"\r\n" in data:
        line, _, rest = data.partition(b"\r\n")
        match = _LINE.fullmatch(line)
        if match is None:
            raise MalformedError(line[:80])
        verb, text = match[1].decode(), match[2] or b""
        words = (text,) if verb == "CONNECT" else tuple(text.split(b" ")) if text else ()
        headers = payload = b""
        if verb == "HPUB":
            if len(words) == 4 and not words[1]:
                words = words[:1] + words[2:]  # nats-py leaves the reply subject empty
            if len(words) != 3:
                raise MalformedError(line[:80])
            head, total = int(words[1]), int(words[2])
            if len(rest) < total + 2:
                break
            if rest[total : total + 2] != b"\r\n" or head > total:
                raise MalformedError(rest[:80])
            headers, payload, rest = rest[:head], rest[head:total], rest[total + 2 :]
        elif len(words) not in {"CONNECT": (1,), "PING": (0,), "PONG": (0,), "SUB": (2, 3), "UNSUB": (1,)}[verb]:
            raise MalformedError(line[:80])
        commands.append(Command(verb, words, headers, payload))
        data = rest
    return commands, data


def answer_nats(command: Command) -> bytes:
    return b"PONG\r\n" if command.verb == "PING" else b""


# -- Redis


def read_redis(data: bytes) -> tuple[list[Command], bytes]:
    """Parse the commands in ``data``, which must be arrays of bulk strings."""
    commands: list[Command] = []
    while data:
        words, rest = _array(data)
        if words is None:
            break
        commands.append(Command(words[0].decode().upper(), tuple(words[1:])))
        data = rest
    return commands, data


def _array(data: bytes) -> tuple[list[bytes] | None, bytes]:
    number, at = _number(data, 0, b"*")
    words: list[bytes] = []
    while number is not None and len(words) < number:
        size, at = _number(data, at, b"$")
        if size is None or len(data) < at + size + 2:
            return None, data
        if data[at + size : at + size + 2] != b"\r\n":
            raise MalformedError(data[at : at + 80])
        words.append(data[at : at + size])
        at += size + 2
    return (words, data[at:]) if words else (None, data)


def _number(data: bytes, at: int, mark: bytes) -> tuple[int | None, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        return None, at
    if data[at : at + 1] != mark or not data[at + 1 : end].isdigit():
        raise MalformedError(data[at : at + 80])
    return int(data[at + 1 : end]), end + 2


_MASTER = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"


def answer_redis(command: Command) -> bytes:
    if command.verb.endswith("SUBSCRIBE"):
        return b"".join(_confirm(command.verb.lower().encode(), channel) for channel in command.words)
    usual = {"PUBLISH": b":0\r\n", "PING": b"+PONG\r\n", "CONFIG": b"*0\r\n", "ROLE": _MASTER}
    return usual.get(command.verb, b"+OK\r\n")


def _confirm(kind: bytes, channel: bytes) -> bytes:
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(channel), channel)


# -- both


class Valve:
    """Delays the writes of a peer on all its connections from `close` to `open`."""

    def __init__(self) -> None:
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._closed = self._done = False

    def close(self) -> None:
        """Delay all further writes."""
        self._closed = not self._done

    def open(self) -> None:
        """Write the delayed data, and delay nothing from now on."""
        self._closed, self._done = False, True
        for writer, data in self._held:
            if not writer.is_closing():
                writer.write(data)
        self._held.clear()

    def behind(self, serve: Serve) -> Serve:
        """Call ``serve`` with a writer that the valve controls."""

        async def serve_behind(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve(reader, _ValveWriter(self, writer))  # type: ignore[arg-type]

        return serve_behind

    def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Write now, or when the valve opens."""
        if self._closed:
            self._held.append((writer, data))
        else:
            writer.write(data)


class _ValveWriter:
    """The methods of a writer that a `Peer` uses."""

    def __init__(self, valve: Valve, writer: asyncio.StreamWriter) -> None:
        self._valve = valve
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._valve.write(self._writer, data)

    async def drain(self) -> None:
        await self._writer.drain()


class Peer:
    """Serves connections (listeners.Serve) and records the commands.

    Attributes:
        commands: commands of all connections.
        malformed: malformed data, after which a connection is closed.
    """

    def __init__(
        self,
        kind: str,
        answer: Reply | None = None,
        *,
        greeting: bytes | None = None,
        then: tuple[Callable[[Command], bool], Serve] | None = None,
    ) -> None:
        """
        Args:
            kind: ``redis`` or ``nats``.
            answer: returns the answer to a command; None: the default answer.
            greeting: first data of a connection; default: that of the server.
            then: a condition and a function; after a command that satisfies the condition, the function serves the connection,
                and no other connection is served.
        """
        self.commands: list[Command] = []
        self.malformed: list[MalformedError] = []
        self._read = {"redis": read_redis, "nats": read_nats}[kind]
        self._usual = {"redis": answer_redis, "nats": answer_nats}[kind]
        self._answer = answer or self._usual
        usual_greeting = b"INFO " + json.dumps(INFO).encode() + b"\r\n" if kind == "nats" else b""
        self._greeting = usual_greeting if greeting is None else greeting
        self._turns, self._then = then or (lambda command: False, None)
        self._turned = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._turned:
            return
        writer.write(self._greeting)
        data = b""
        while chunk := await reader.read(1 << 20):
            try:
                commands, data = self._read(data + chunk)
            except MalformedError as problem:
                self.malformed.append(problem)
                return
            self.commands += commands
            for command in commands:
                answer = self._answer(command)
                writer.write(self._usual(command) if answer is None else answer)
            await writer.drain()
            if self._then is not None and any(self._turns(command) for command in commands):
                self._turned = True
                await self._then(reader, writer)
                return

    def told(self, verb: str) -> list[Command]:
        return [command for command in self.commands if command.verb == verb]
