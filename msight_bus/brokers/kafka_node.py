"""Server properties of a single Kafka node, and the check that the node is ready."""

from __future__ import annotations

import base64
import socket
import struct
import uuid

from msight_bus.brokers.probing import receive

VERSION = "4.1.0"  # of the jars and of the image

# The listener of clients has its own name, so that one line configures TLS or SASL (the protocol map) and one line a fault
# proxy (advertised.listeners). Internal topics have few partitions, because each delays the join of the first group. The
# session timeout is short, because after a crash the node waits until its previous session expires (default: 9 s).
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # About 640 MB a partition, of any age, so that a log does not fill the disk of a development machine.
    "log.retention.ms": "-1",
    "log.retention.bytes": "536870912",
    "log.segment.bytes": "134217728",
    "log.retention.check.interval.ms": "30000",
    "log.segment.delete.delay.ms": "5000",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


def properties(*, bind: str, advertise: str, port: int, controller: int) -> dict[str, str]:
    """Return the properties of one node that is broker and controller.

    Args:
        bind: address on which the client listener listens.
        advertise: address that the node advertises to clients.
        port: TCP port of the client listener.
        controller: TCP port of the controller listener, on loopback.
    """
    return _PROPERTIES | {
        "listeners": f"CLIENT://{bind}:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENT://{advertise}:{port}",
    }


def cluster_id() -> str:
    """Return a new cluster id: 16 bytes as URL-safe base64 that does not begin with a dash."""
    return base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


_METADATA, _API_VERSIONS = 3, 18
_NO_TOPICS = struct.pack(">i", 0)


def speaks(connection: socket.socket) -> bool:
    """Return whether a broker answers and is registered; a broker with SASL answers only ApiVersions without authentication."""
    _request(connection, _API_VERSIONS, 0)
    try:
        brokers: int = struct.unpack_from(">i", _request(connection, _METADATA, 1, _NO_TOPICS))[0]
    except ConnectionError:
        return True
    return brokers > 0


def _request(connection: socket.socket, api: int, version: int, body: bytes = b"") -> bytes:
    """Send one request of the Kafka protocol; return the response without its header."""
    message = struct.pack(">hhih", api, version, 1, -1) + body  # correlation id 1, no client id
    connection.sendall(struct.pack(">i", len(message)) + message)
    size: int = struct.unpack(">i", receive(connection, 4))[0]
    if not 4 <= size <= 1_000_000:
        raise ConnectionError(f"not a Kafka broker: response of {size} bytes")
    return receive(connection, size)[4:]
