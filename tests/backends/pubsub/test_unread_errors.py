"""A server sends its reason and disconnects at once: the error has the reason, although a write fails before the read."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from msight_bus import ConnectionLostError
from tests.support.brokers import backend_at
from tests.support.peers import INFO
from tests.support.rig import LIVE

live = pytest.mark.parametrize("kind", LIVE)
FULL = {
    "redis": b"-ERR max number of clients reached\r\n",
    "nats": b"INFO %b\r\n-ERR 'maximum connections exceeded'\r\n" % json.dumps(INFO).encode(),
}


@contextmanager
def full(kind):
    """Refuse as a full server does: nothing is read, so the kernel resets the connection. Uses a thread, so that the peer
    has disconnected before the client writes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(FULL[kind])
                    connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@live
async def test_a_server_that_is_full_says_so(kind):
    with full(kind) as port:
        for _ in range(10):
            with pytest.raises(ConnectionLostError, match="(?i)max") as caught:
                async with backend_at(kind, port).connect(MSIGHT_CONNECT_TIMEOUT="2"):
                    pass
            assert "start a server with" not in str(caught.value)
