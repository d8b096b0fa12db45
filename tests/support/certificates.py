"""Certificates of one run: valid ones, and one for each kind of invalid certificate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization

HERE = ("localhost", "127.0.0.1")
_LONG_AGO = {"not_before": datetime(2019, 1, 1, tzinfo=UTC), "not_after": datetime(2020, 1, 1, tzinfo=UTC)}


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, as files; ``pem`` has both, as Kafka requires."""

    cert: str
    key: str
    pem: str


@dataclass(frozen=True)
class Certificates:
    """A trusted authority, an untrusted one, and their certificates.

    Attributes:
        ca: file of the trusted authority.
        stranger: file of the untrusted authority.
        server: certificate for this host.
        expired: certificate for this host that expired in 2020.
        elsewhere: certificate for another host.
        client: certificate of a client.
        foreign_client: certificate of a client, by the untrusted authority.
    """

    ca: str
    stranger: str
    server: Pair
    expired: Pair
    elsewhere: Pair
    client: Pair
    foreign_client: Pair


def make_certificates(folder: Path) -> Certificates:
    authority, stranger = trustme.CA(), trustme.CA()

    def write_ca(name: str, ca: trustme.CA) -> str:
        ca.cert_pem.write_to_path(folder / f"{name}.pem")
        return str(folder / f"{name}.pem")

    def issue(name: str, *identities: str, ca: trustme.CA = authority, **dates: Any) -> Pair:
        issued = ca.issue_cert(*identities, **dates)
        loaded = serialization.load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        key = loaded.private_bytes(  # the only format that Java reads
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        files = {"cert": chain, "key": key, "pem": key + chain}
        for kind, content in files.items():
            (folder / f"{name}.{kind}").write_bytes(content)
        return Pair(**{kind: str(folder / f"{name}.{kind}") for kind in files})

    return Certificates(
        ca=write_ca("ca", authority),
        stranger=write_ca("stranger", stranger),
        server=issue("server", *HERE),
        expired=issue("expired", *HERE, **_LONG_AGO),
        elsewhere=issue("elsewhere", "broker.example"),
        client=issue("client", "client@example"),
        foreign_client=issue("foreign_client", "client@example", ca=stranger),
    )
