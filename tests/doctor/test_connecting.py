"""Faults of the connection and of the settings: each is found, named and has an advice that ends it."""

from __future__ import annotations

import socket
import threading

import pytest

from msight_bus import brokers
from tests.support.brokers import make_backend_alone
from tests.support.examining import examine_variables
from tests.support.servers import EVERY, start

QUICKLY = {"MSIGHT_CONNECT_TIMEOUT": "2"}


@pytest.mark.parametrize("kind", EVERY)
def test_a_broker_that_is_away_and_the_advice_ends_it(kind):
    port = brokers.free_port()
    environment = {**brokers.KINDS[kind].env(port), **QUICKLY}
    status, found = examine_variables(kind, **environment)
    assert (status, list(found)) == (3, ["broker"])
    assert f"`msight-bus up {kind} --port {port}`" in found["broker"]["advice"]
    if kind != "kafka":  # another start of Kafka takes seconds
        with start(kind, port=port):
            assert examine_variables(kind, **environment)[0] == 0


@pytest.mark.parametrize(
    ("kind", "other"), [("redis", "nats"), ("redis", "kafka"), ("nats", "redis"), ("nats", "kafka"), ("kafka", "redis")]
)
def test_a_port_of_another_broker(kind, other):
    address = brokers.KINDS[kind].env(_port(other))
    status, found = examine_variables(kind, **address, **QUICKLY)
    assert (status, list(found)) == (3, ["protocol"])
    assert f"answers with {other}, not as {brokers.KINDS[kind].label}" in found["protocol"]["problem"]
    assert str(brokers.KINDS[kind].standard_port) in found["protocol"]["advice"]
    assert f"MSIGHT_PUBSUB_BACKEND={other} " in found["protocol"]["advice"]


def _port(kind):
    text = next(value for name, value in make_backend_alone(kind).env.items() if name.endswith(("_PORT", "_SERVERS")))
    return int(text.rpartition(":")[2])


@pytest.mark.parametrize("kind", EVERY)
def test_a_port_of_a_web_server(kind):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client:
                    if client.recv(100):
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        status, found = examine_variables(kind, **brokers.KINDS[kind].env(listening.getsockname()[1]), **QUICKLY)
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert (status, list(found)) == (3, ["protocol"])
    assert "HTTP" in found["protocol"]["problem"]


def test_a_misspelt_variable(nats):
    status, found = examine_variables("nats", **nats.env, MSIGHT_NATS_SERVER="nats://127.0.0.1:1")
    assert (status, list(found)) == (1, ["settings"])
    advice = 'export MSIGHT_NATS_SERVERS="$MSIGHT_NATS_SERVER"; unset MSIGHT_NATS_SERVER'
    assert f"`{advice}`" in found["settings"]["advice"]
    status, found = examine_variables("nats", **nats.env, MSIGHT_NATS_SERVER="nats://127.0.0.1:1", MSIGHT_STRICT="true")
    assert (status, list(found)) == (2, ["settings"])
    assert examine_variables("nats", **nats.env)[0] == 0


def test_a_wrong_value_and_wrong_usage(nats):
    status, found = examine_variables("nats", **nats.env, MSIGHT_CONNECT_TIMEOUT="soon")
    assert (status, "MSIGHT_CONNECT_TIMEOUT" in found["settings"]["problem"]) == (2, True)
    assert examine_variables("nats", "camera/*", **nats.env)[0] == 2
    assert examine_variables("memory")[0] == 2
