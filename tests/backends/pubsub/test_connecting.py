"""What stands in the way of a connection is said as it is."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from msight_bus import BusError
from tests.support.brokers import make_backend


@pytest.mark.parametrize("name", ["redis", "nats", "kafka"])
async def test_a_warning_turned_into_an_error_is_no_unreachable_broker(name, monkeypatch):
    """As of a client under a newer Python, in a program that runs with ``-W error``."""
    backend = make_backend(name)
    loop = asyncio.get_running_loop()
    original = loop.create_connection

    async def create_connection(*arguments, **keywords):
        warnings.warn("this argument goes away", DeprecationWarning, stacklevel=2)
        return await original(*arguments, **keywords)

    monkeypatch.setattr(loop, "create_connection", create_connection, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(BusError, match="DeprecationWarning.*this argument goes away") as caught:
            async with backend.connect(MSIGHT_CONNECT_TIMEOUT="3"):
                pass
    assert "cannot be reached" not in str(caught.value)
    assert "start a server with" not in str(caught.value)
