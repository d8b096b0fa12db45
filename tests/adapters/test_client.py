"""The ordinary clients' way and our own meet on the wire, and one stands where the other is broken."""

from __future__ import annotations

import sys

import pytest

from msight_bus import ConfigError
from msight_bus.settings import BusSettings
from tests.conftest import make_backend
from tests.contract.test_publish import EVERY_BYTE, take

LIVE = ["redis", "nats"]


def way(kind, transport):
    return make_backend(f"{kind}-{transport}")


@pytest.mark.parametrize("kind", LIVE)
@pytest.mark.parametrize(("sender", "receiver"), [("fast", "client"), ("client", "fast")])
async def test_what_one_transport_publishes_the_other_receives(kind, sender, receiver, topic):
    headers = {"traceparent": "00-ab-cd-01", "x": "ü ñ"}
    sent = [(b"", None, {}), (EVERY_BYTE, "lane 3\r\n", headers), (b"x", "", {}), (EVERY_BYTE * 900, None, headers)]
    async with way(kind, sender).connect() as bus, way(kind, receiver).connect() as other:
        async with other.subscribe(topic) as messages:
            for payload, key, more in sent:
                await bus.publish(topic, payload, key=key, headers=more)
            received = await take(messages, len(sent))
            assert not messages.stats.gaps
    assert [(m.payload, m.key, dict(m.headers)) for m in received] == sent
    assert [m.sequence for m in received] == [1, 2, 3, 4]
    assert all(0 <= m.received_at - m.published_at < 20 for m in received)


@pytest.mark.parametrize("kind", LIVE)
async def test_the_clients_way_stands_where_ours_cannot_be_imported(kind, topic, monkeypatch):
    monkeypatch.setitem(sys.modules, f"msight_bus.adapters.{kind}.fast", None)
    with pytest.raises(ImportError):
        async with way(kind, "fast").connect():
            pass
    async with way(kind, "client").connect() as bus, bus.subscribe(topic) as messages:
        await bus.publish(topic, b"x")
        assert (await take(messages, 1))[0].payload == b"x"


def test_it_is_chosen_with_a_variable():
    assert BusSettings(environ={}).transport == "fast"
    assert BusSettings(environ={"MSIGHT_TRANSPORT": "Client"}).transport == "client"
    with pytest.raises(ConfigError, match=r"MSIGHT_TRANSPORT .* fast, client"):
        BusSettings(environ={"MSIGHT_TRANSPORT": "slow"})
