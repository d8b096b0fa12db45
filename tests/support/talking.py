"""Publish and receive on secured brokers, or check that a connection is refused."""

from __future__ import annotations

import asyncio
import itertools
import os
import warnings

import pytest

import msight_bus
from msight_bus import BusError
from msight_bus.settings import BusSettings
from tests.support.canaries import Watch

_numbers = itertools.count()

CONNECT_TIMEOUT = 5.0
QUICK = {"MSIGHT_RECONNECT_MAX": "0.1", "MSIGHT_PUBLISH_TIMEOUT": "6", "MSIGHT_PING_INTERVAL": "0.2"}
QUICK |= {"MSIGHT_DRAIN_TIMEOUT": "1", "MSIGHT_REFUSAL_PATIENCE": "0.5"}


def new_topic() -> str:
    return f"security{os.getpid()}.t{next(_numbers)}"


def settings_of(environ: dict[str, str], **more: str) -> BusSettings:
    """Return settings with a short deadline; ``more`` overrides them."""
    return BusSettings(environ={"MSIGHT_CONNECT_TIMEOUT": f"{CONNECT_TIMEOUT:g}", **environ, **more})


async def talk(settings: BusSettings) -> None:
    """Publish and receive a message."""
    topic = new_topic()
    async with msight_bus.connect(settings) as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"hello", headers={"a": "b"})
        async with asyncio.timeout(10):
            message = await anext(messages)
    assert message.payload == b"hello"


async def refused(kind: type[BusError], settings: BusSettings, watch: Watch, match: str = "") -> BusError:
    """Check that connecting raises one error of exactly this type within the deadline."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(BusError, match=match or None) as caught:
        async with msight_bus.connect(settings):
            pass
    took = loop.time() - start
    watch.show(caught.value, settings, settings.dump())
    assert type(caught.value) is kind, f"{caught.value!r}"
    assert took < settings.limits.connect_timeout + 1.0
    return caught.value


def loudly(environ: dict[str, str], watch: Watch, match: str, **more: str) -> BusSettings:
    """Return settings whose creation warns."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        settings = settings_of(environ, **more)
    watch.show(*seen)
    assert any(
        issubclass(warning.category, msight_bus.settings.InsecureWarning) and match in str(warning.message)
        for warning in seen
    ), [str(warning.message) for warning in seen]
    return settings


class Seen(list):
    """Collected events, with a method that waits for one."""

    def __init__(self):
        super().__init__()
        self._news = asyncio.Event()

    def append(self, event):
        super().append(event)
        self._news.set()

    async def wait_for(self, kind):
        async with asyncio.timeout(15):
            while not any(isinstance(event, kind) for event in self):
                await self._news.wait()
                self._news.clear()
