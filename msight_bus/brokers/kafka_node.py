"""What every single Kafka node here has in common: its server properties, and how to see that it works."""

from __future__ import annotations

import base64
import socket
import struct
import uuid

from msight_bus.brokers.probing import receive

VERSION = "4.1.0"  # what is fetched: jars, or the tag of the image

# The clients' listener has a name of its own, so that TLS or SASL is one line (its protocol in the map) and a
# fault proxy another (advertised.listeners). Few partitions in the internal topics: each costs time when the
# first group joins. A short session: after a crash the node waits until its former self expires (else 9 s).
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
    # A log must not fill the disk of a development machine: about 640 MB a partition, of any age.
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
        bind: address that the client listener listens on.
        advertise: address that clients are told.
        port: of the client listener.
        controller: port of the controller listener, on loopback.
    """
    return _PROPERTIES | {
        "listeners": f"CLIENT://{bind}:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENT://{advertise}:{port}",
    }


def cluster_id() -> str:
    """Return a new cluster id: 16 bytes as URL-safe base64, the first character not a dash."""
    return base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


_METADATA, _API_VERSIONS = 3, 18
_NO_TOPICS = struct.pack(">i", 0)


def speaks(connection: socket.socket) -> bool:
    """Tell whether a broker answers and is registered; with SASL it tells strangers its API versions only."""
    _request(connection, _API_VERSIONS, 0)
    try:
        brokers: int = struct.unpack_from(">i", _request(connection, _METADATA, 1, _NO_TOPICS))[0]
    except ConnectionError:
        return True
    return brokers > 0


def _request(connection: socket.socket, api: int, version: int, body: bytes = b"") -> bytes:
    """Send one request of the Kafka protocol; return what follows the header of its response."""
    message = struct.pack(">hhih", api, version, 1, -1) + body  # correlation id 1, no client id
    connection.sendall(struct.pack(">i", len(message)) + message)
    size: int = struct.unpack(">i", receive(connection, 4))[0]
    if not 4 <= size <= 1_000_000:
        raise ConnectionError("not a Kafka broker")
    return receive(connection, size)[4:]
