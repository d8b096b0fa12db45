"""A server is asked in plain text, then over TLS; one that wants a certificate of ours is up as well."""

from __future__ import annotations

import socket
import threading

import pytest
import trustme

from msight_bus.brokers import ports, probing


@pytest.fixture
def certificates(tmp_path):
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path


@pytest.mark.parametrize("more", ["verify: false", "verify: true", "handshake_first: true"])
def test_over_tls(more, certificates, start_broker):
    files = f'cert_file: "{certificates}/cert.pem", key_file: "{certificates}/key.pem"'
    tls = f'tls {{ {files}, ca_file: "{certificates}/ca.pem", {more} }}'
    assert start_broker("nats", config=[tls]).is_alive


def test_nobody_there():
    assert not probing.answers(ports.free_port(), lambda connection: True)


def test_somebody_who_hangs_up():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            for _ in range(2):  # plain, then TLS
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert not probing.answers(server.getsockname()[1], lambda connection: bool(probing.receive(connection, 1)))
        thread.join()
