"""Faults of the connection and of the settings: each is found, named and has an advice that ends it."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from msight_bus import brokers
from tests.support.brokers import Backend, make_backend
from tests.support.certificates import make_certificates
from tests.support.commands import command
from tests.support.servers import CREDENTIALS, EVERY, PREFIX, WRONG, start, start_secured, variables

QUICKLY = {"MSIGHT_CONNECT_TIMEOUT": "2"}


def examine(kind, *arguments, **environment):
    """Run ``doctor`` with only these variables; return the exit status and the findings by check."""
    backend = Backend(kind, {})
    result = command(backend, "doctor", "--observe", "0.1", "--json", *arguments, **environment)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {one["check"]: one for one in found if "check" in one}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(made):
    running = {}

    def get(kind):
        if kind not in running:
            running[kind] = start_secured(kind, made)
        return running[kind]

    yield get
    for one in running.values():
        one.stop()


@pytest.mark.parametrize("kind", EVERY)
def test_a_broker_that_is_away_and_the_advice_ends_it(kind):
    port = brokers.free_port()
    environment = {**brokers.KINDS[kind].env(port), **QUICKLY}
    status, found = examine(kind, **environment)
    assert (status, list(found)) == (3, ["broker"])
    assert f"`msight-bus up {kind}`" in found["broker"]["advice"]
    if kind != "kafka":  # another start of Kafka takes seconds
        with start(kind, port=port):
            assert examine(kind, **environment)[0] == 0


@pytest.mark.parametrize(
    ("kind", "other"), [("redis", "nats"), ("redis", "kafka"), ("nats", "redis"), ("nats", "kafka"), ("kafka", "redis")]
)
def test_a_port_of_another_broker(kind, other):
    address = brokers.KINDS[kind].env(_port(other))
    status, found = examine(kind, **address, **QUICKLY)
    assert (status, list(found)) == (3, ["protocol"])
    assert f"answers with {other}, not as {brokers.KINDS[kind].label}" in found["protocol"]["problem"]
    assert str(brokers.KINDS[kind].standard_port) in found["protocol"]["advice"]


def _port(kind):
    text = next(value for name, value in make_backend(kind).env.items() if name.endswith(("_PORT", "_SERVERS")))
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
        status, found = examine(kind, **brokers.KINDS[kind].env(listening.getsockname()[1]), **QUICKLY)
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert (status, list(found)) == (3, ["protocol"])
    assert "HTTP" in found["protocol"]["problem"]


@pytest.mark.parametrize("kind", EVERY)
def test_a_wrong_password(kind, secured):
    right = CREDENTIALS[kind]
    name = next(name for name in right if name.endswith("PASSWORD"))
    port = secured(kind).ports["plain"]
    status, found = examine(kind, **variables(kind, port, **right | {name: WRONG}))
    assert (status, list(found)) == (3, ["credentials"])
    assert f"`export {PREFIX[kind]}{name}=" in found["credentials"]["advice"]
    assert WRONG not in json.dumps(found)
    assert examine(kind, **variables(kind, port, **right))[0] == 0


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "wrong",
    [
        ("server", "stranger", "TLS_CA_CERT_FILE=ca.pem"),
        ("expired", "ca", "has expired"),
        ("elsewhere", "ca", "a name that the certificate has"),
        ("mutual", "ca", "TLS_CERT_FILE"),
    ],
    ids=["authority", "expired", "host", "client"],
)
def test_a_wrong_certificate(kind, wrong, secured, made):
    flavour, authority, advice = wrong
    tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": getattr(made, authority)}
    environment = variables(kind, secured(kind).ports[flavour], **CREDENTIALS[kind], **tls)
    status, found = examine(kind, **environment)
    assert (status, list(found)) == (3, ["certificate"])
    assert advice in found["certificate"]["advice"]
    if authority == "stranger":
        environment[f"{PREFIX[kind]}TLS_CA_CERT_FILE"] = made.ca
        assert examine(kind, **environment)[0] == 0


def test_a_misspelt_variable(nats):
    status, found = examine("nats", **nats.env, MSIGHT_NATS_SERVER="nats://127.0.0.1:1")
    assert (status, list(found)) == (1, ["settings"])
    advice = 'export MSIGHT_NATS_SERVERS="$MSIGHT_NATS_SERVER"; unset MSIGHT_NATS_SERVER'
    assert f"`{advice}`" in found["settings"]["advice"]
    status, found = examine("nats", **nats.env, MSIGHT_NATS_SERVER="nats://127.0.0.1:1", MSIGHT_STRICT="true")
    assert (status, list(found)) == (2, ["settings"])
    assert examine("nats", **nats.env)[0] == 0


def test_a_wrong_value_and_wrong_usage(nats):
    status, found = examine("nats", **nats.env, MSIGHT_CONNECT_TIMEOUT="soon")
    assert (status, "MSIGHT_CONNECT_TIMEOUT" in found["settings"]["problem"]) == (2, True)
    assert examine("nats", "camera/*", **nats.env)[0] == 2
    assert examine("memory")[0] == 2
