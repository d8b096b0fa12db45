"""A secret in a file is read again at each connect, so that it can be changed while programs run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest

import msight_bus
from msight_bus import AuthenticationError, brokers
from msight_bus.events import Disconnected, Reconnected
from tests.support.canaries import canary
from tests.support.listeners import proxy
from tests.support.receiving import take
from tests.support.servers import OTHER_PASSWORD, PASSWORD, USER, door, start, variables
from tests.support.talking import QUICK, Seen, new_topic, settings_of, talk

FIRST, SECOND = canary("first secret"), canary("second secret")


def token_door(kind, secret):
    return [f'authorization {{ token: "{secret}" }}']


class Way(NamedTuple):
    """A secret in a file: of which broker, in which variable, beside which others, and the broker's configuration."""

    kind: str
    variable: str
    others: dict[str, str]
    config: Callable[[str, str], list[str]]

    def settings(self, port, file, **more):
        """Settings that name the file."""
        return settings_of(variables(self.kind, port, **self.others, **{self.variable: str(file)}), **more)

    async def start(self, port, secret):
        """A broker that wants the secret."""
        return await asyncio.to_thread(start, self.kind, port=port, config=self.config(self.kind, secret))


WAYS = [
    Way("redis", "PASSWORD_FILE", {}, door),
    Way("nats", "PASSWORD_FILE", {"USERNAME": USER}, door),
    Way("nats", "TOKEN_FILE", {}, token_door),
]
ways = pytest.mark.parametrize("way", WAYS, ids=[f"{way.kind}-{way.variable}" for way in WAYS])


@ways
async def test_a_bus_reconnects_with_the_current_content_of_the_file(way, tmp_path, watch):
    port, topic, events, file = brokers.free_port(), new_topic(), Seen(), tmp_path / "secret"
    file.write_text(FIRST + "\n")
    settings = way.settings(port, file, **QUICK)
    with await way.start(port, FIRST) as first:
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
            await asyncio.to_thread(first.stop)
            await events.wait_for(Disconnected)
            file.write_text(SECOND + "\n")
            with await way.start(port, SECOND):
                returning = asyncio.create_task(events.wait_for(Reconnected))
                failing = asyncio.create_task(take(messages, 1))
                try:
                    await asyncio.wait((returning, failing), return_when=asyncio.FIRST_COMPLETED)
                    assert not failing.done(), failing.exception()
                    await bus.publish(topic, b"after")
                    assert (await failing)[0].payload == b"after"
                finally:
                    for task in (returning, failing):
                        task.cancel()
                    await asyncio.wait((returning, failing))
                    watch.show(*events)


@ways
async def test_a_new_bus_with_the_same_settings_reads_the_file_again(way, tmp_path, watch):
    port, file = brokers.free_port(), tmp_path / "secret"
    file.write_text(FIRST)
    settings = way.settings(port, file)
    with await way.start(port, FIRST):
        await talk(settings)
    file.write_text(SECOND)
    with await way.start(port, SECOND):
        await talk(settings)
    watch.show(settings)


@ways
@pytest.mark.parametrize("patience", ["0.001", "inf"])
async def test_a_temporarily_missing_file_is_waited_for(way, patience, tmp_path):
    """Not every tool replaces a file atomically."""
    events, file = Seen(), tmp_path / "secret"
    file.write_text(FIRST)
    with await way.start(brokers.free_port(), FIRST) as broker:
        async with proxy(broker.port) as line:
            settings = way.settings(line.port, file, **QUICK | {"MSIGHT_REFUSAL_PATIENCE": patience})
            async with msight_bus.connect(settings, on_event=events.append) as bus:
                file.unlink()
                line.cut()
                await events.wait_for(Disconnected)
                await asyncio.sleep(0.3)  # some tries
                file.write_text(FIRST)
                await events.wait_for(Reconnected)
                await bus.publish(new_topic(), b"x")


async def test_kafka_reconnects_with_the_current_content_of_the_file(secured, tmp_path, watch):
    topic, servers, events, file = new_topic(), secured("kafka"), Seen(), tmp_path / "secret"
    file.write_text(PASSWORD + "\n")
    known = {"SASL_MECHANISM": "PLAIN", "SASL_USERNAME": USER, "SASL_PASSWORD_FILE": str(file)}
    patient = {**QUICK, "MSIGHT_CONNECT_TIMEOUT": "5", "MSIGHT_PUBLISH_TIMEOUT": "20"}
    async with servers.before_and_after() as way:
        settings = settings_of(variables("kafka", way.port, **known), **patient)
        async with msight_bus.connect(settings, on_event=events.append) as bus, bus.subscribe(topic) as messages:
            await bus.publish(topic, b"before")
            await take(messages, 1)
            way.target = servers.ports["after"]
            way.cut()
            await events.wait_for(Disconnected)  # refused with what the file holds until now
            file.write_text(OTHER_PASSWORD + "\n")
            await bus.publish(topic, b"after")
            assert (await take(messages, 1))[0].payload == b"after"
    watch.show(*events)


async def test_a_lasting_refusal_by_kafka_is_raised_after_the_refusal_patience(secured, tmp_path):
    servers, file = secured("kafka"), tmp_path / "secret"
    file.write_text(PASSWORD)
    known = {"SASL_MECHANISM": "PLAIN", "SASL_USERNAME": USER, "SASL_PASSWORD_FILE": str(file)}
    async with servers.before_and_after() as way:
        settings = settings_of(variables("kafka", way.port, **known), **QUICK)
        async with msight_bus.connect(settings) as bus, bus.subscribe(new_topic()) as messages:
            way.target = servers.ports["after"]
            way.cut()
            with pytest.raises(AuthenticationError):
                await take(messages, 1)
