"""No topic, group, header, key, payload or secret can inject a protocol command."""

from __future__ import annotations

import json
import os
import random
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import msight_bus
from msight_bus import HeaderError, MessageTooLargeError, TopicError
from msight_bus.patterns import is_pattern
from msight_bus.payload import check_headers, check_key
from msight_bus.protocol import envelope
from msight_bus.settings import Limits
from msight_bus.topics import check_group, check_topic
from tests.support.canaries import remember
from tests.support.listeners import fake
from tests.support.peers import Peer
from tests.support.servers import LIVE, variables
from tests.support.talking import settings_of

ATTEMPTS = int(os.environ.get("FUZZ_MESSAGES", "20000"))
"""Messages of one backend; the project's target was a million (FUZZ_MESSAGES=1000000)."""

SEED = int(os.environ.get("FUZZ_SEED", str(random.randrange(1 << 32))))

PIECES = [
    *("\r\n", "\n", "\r", "\0", " ", "\t", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\u2028", "\u2029"),
    *("\xa0", "\ufeff", "\udc80"),
    *("PUB a 1\r\nx\r\n", "SUB > 9", "HPUB a 1 2", "PING", "+OK", "-ERR", "INFO {}", "UNSUB 1"),
    *("*1\r\n$8\r\nFLUSHALL\r\n", "$-1", "*3", "PUBLISH", ":1", "NATS/1.0\r\n\r\n", "msight: 0", "msight", ": "),
    *("a", "b", "Z9", "_", "-", ".", "..", ">", "*", "$", ":", "ö", "√", "😀", '"', "'", "\\", "{", "}", "%0d%0a"),
]  # fmt: skip
HARMLESS = ["a", "b", "Z9", "x-y", "_c"]


def text(chance: random.Random, most: int = 4) -> str:
    return "".join(chance.choice(PIECES) for _ in range(chance.randint(0, most)))


def topic_of(chance: random.Random) -> str:
    if chance.random() < 0.6:
        return ".".join(chance.choice(HARMLESS) for _ in range(chance.randint(1, 4)))
    return text(chance)


def headers_of(chance: random.Random) -> dict[str, str] | None:
    def part() -> str:
        return chance.choice(HARMLESS) if chance.random() < 0.7 else text(chance, 3)

    return {part(): part() for _ in range(chance.randint(1, 3))} if chance.random() < 0.7 else None


OWN_COMMANDS = {"CONNECT", "PING", "CLIENT", "CONFIG", "ROLE", "INFO", "CLUSTER"}
"""What a bus sends without being asked to."""


def of_the_test(commands):
    """Without those on topics of the bus itself."""
    return [command for command in commands if not command.words[0].startswith(b"_msight.")]


def assert_nats_is(command, topic, payload, key, headers):
    assert command.words[0] == topic.encode()
    assert command.payload == payload
    first, meta, *lines, end, after = command.headers.split(b"\r\n")
    assert (first, end, after) == (b"NATS/1.0", b"", b"")
    assert re.fullmatch(rb"msight: [0-9a-f]{48}( ([A-Za-z0-9_.~%-]+|\"\"))?", meta)
    assert meta[8 + 48 :] == (b"" if key is None else b" " + (quote(key, safe="").encode() or b'""'))
    assert lines == [f"{name}: {value}".encode() for name, value in (headers or {}).items()]
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)


def assert_redis_is(command, topic, payload, key, headers):
    channel, data = command.words
    assert channel == topic.encode()
    start = envelope.prefix_length(data, 0, len(data))
    extension = start - envelope.PREFIX_BYTES
    assert data[start:] == payload
    if extension:
        assert envelope.unpack_extension(data[start - extension : start]) == (key, headers or {})
    else:
        assert (key, headers) == (None, None)


@pytest.mark.timeout(60 + ATTEMPTS // 500)
@pytest.mark.parametrize("kind", LIVE)
async def test_fuzzed_messages_are_one_command_each_or_an_error(kind):
    print(f"FUZZ_SEED={SEED}")  # noqa: T201 - shown if it fails
    chance = random.Random(SEED)
    peer, accepted, done, sent = Peer(kind), [], 0, 0
    assert_is = assert_nats_is if kind == "nats" else assert_redis_is
    async with (
        fake(peer) as way,
        msight_bus.connect(settings_of({**variables(kind, way.port), "MSIGHT_ANNOUNCE": "false"})) as bus,
    ):
        while done < ATTEMPTS:
            async with bus.publisher("a") as last:
                for _ in range(min(2000, ATTEMPTS - done)):
                    done += 1
                    message = (topic_of(chance), text(chance).encode(errors="replace"))
                    more = (text(chance) if chance.random() < 0.3 else None, headers_of(chance))
                    try:
                        await bus.publish(*message, key=more[0], headers=more[1])
                    except (TopicError, HeaderError, MessageTooLargeError):
                        continue
                    accepted.append((*message, *more))
                await last.send(b"end")
                accepted.append(("a", b"end", None, None))
            assert not peer.malformed
            published = of_the_test(peer.told("HPUB" if kind == "nats" else "PUBLISH"))
            for command, expected in zip(published, accepted, strict=True):
                assert_is(command, *expected)
            assert {command.verb for command in peer.commands} <= {"HPUB", "PUBLISH", *OWN_COMMANDS}
            sent += len(published)
            peer.commands.clear()
            accepted.clear()
        assert way.connections == 1
    assert sent > ATTEMPTS / 10


@pytest.mark.parametrize("kind", LIVE)
async def test_fuzzed_topics_and_groups_are_one_subscription_each_or_an_error(kind):
    chance, peer, subscribed, patterns = random.Random(SEED), Peer(kind), [], []
    async with fake(peer) as way, msight_bus.connect(settings_of(variables(kind, way.port))) as bus:
        for _ in range(300):
            topic, group = topic_of(chance), topic_of(chance) if kind == "nats" and chance.random() < 0.5 else None
            try:
                subscription = bus.subscribe(topic, group_id=group)
            except TopicError:
                continue
            async with subscription:
                if kind == "nats" or not is_pattern(topic):
                    subscribed.append((topic.encode(), *([group.encode()] if group else [])))
                else:
                    patterns.append((topic.replace(">", "*").encode(),))
    assert not peer.malformed
    verb, end = ("SUB", -1) if kind == "nats" else ("SUBSCRIBE", 1)  # NATS adds a number of its own
    assert [command.words[:end] for command in of_the_test(peer.told(verb))] == subscribed
    assert [command.words[:1] for command in peer.told("PSUBSCRIBE")] == patterns
    assert len(subscribed) > 50


@pytest.mark.parametrize("kind", LIVE)
async def test_credentials_and_names_inject_no_command(kind):
    evil = remember('evil"}\r\nPUB a 1\r\nx\r\n*1\r\n$8\r\nFLUSHALL\r\n long enough to be told from others')
    peer = Peer(kind)
    names = {"MSIGHT_EDGE_DEVICE_NAME": 'cam"} PUB a 1'}
    async with fake(peer) as way:
        credentials = {"USERNAME": 'al"} PING', "PASSWORD": evil}
        async with msight_bus.connect(settings_of(variables(kind, way.port, **credentials), **names)):
            pass
        tokens = [{"TOKEN": evil}] if kind == "nats" else []
        for token in tokens:
            async with msight_bus.connect(settings_of(variables(kind, way.port, **token), **names)):
                pass
    assert not peer.malformed
    if kind == "redis":
        assert {command.words for command in peer.told("AUTH")} == {(b'al"} PING', evil.encode())}
    else:
        first, second = (json.loads(command.words[0]) for command in peer.told("CONNECT"))
        assert (first["user"], first["pass"], first["name"]) == ('al"} PING', evil, 'cam"} PUB a 1')
        assert second["auth_token"] == evil
    assert {command.verb for command in peer.commands} <= {"AUTH", *OWN_COMMANDS}


@given(st.text() | st.text("abcXYZ019_-.").map(str) | st.just("a\n") | st.just("a\r\n"))
def test_an_accepted_topic_or_group_is_one_word(name):
    for check in (check_topic, check_group):
        try:
            check(name)
        except TopicError:
            continue
        assert re.fullmatch(r"[!-~]+", name)
        assert not set(name) & set("*>$\"'\\{}")


@given(st.dictionaries(st.text() | st.from_regex(r"[a-z-]+"), st.text(), max_size=3), st.text() | st.none())
def test_accepted_headers_and_keys_are_one_line_each(headers, key):
    try:
        check_headers(headers, Limits())
        checked = check_key(key)
    except (HeaderError, MessageTooLargeError):
        return
    for name, value in headers.items():
        assert len(f"{name}: {value}".encode().splitlines()) == 1  # bytes: CR, LF and both
        assert re.fullmatch(r"[!-~]+", name)
        assert ":" not in name
        assert name.lower() != "msight"
    assert checked == key
