"""Why the broker was not reached or refused the connection, from the error that the bus raises and the protocol that answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from msight_bus.brokers import KINDS
from msight_bus.doctor.evidence import Finding
from msight_bus.errors import AuthenticationError, BusError
from msight_bus.settings import BusSettings, HostPort
from msight_bus.settings.tls import find_refused_certificate

_MISSPELT = re.compile(r"(MSIGHT_\w+) is not a variable of msight_bus .* did you mean (MSIGHT_\w+)\?")
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64  # X509_V_ERR_... of OpenSSL
_REACHED_WITHIN, _ANSWERED_WITHIN = 2.0, 0.5
_MOST_SERVERS = 5

_API_VERSIONS = bytes.fromhex("0000000a 0012 0000 00000001 ffff")  # a request of Kafka, number 1, without a client id
_QUESTIONS = (b"", b"PING\r\n", _API_VERSIONS)
_VERIFYING = "nats with certificates of clients"
_ANSWERS = (
    (re.compile(rb'INFO \{.*"tls_verify":\s*true'), _VERIFYING),
    (re.compile(rb"INFO \{"), "nats"),
    (re.compile(rb"\+PONG|-NOAUTH|-NOPERM|-DENIED|-ERR"), "redis"),
    (re.compile(rb".{4}\x00\x00\x00\x01", re.DOTALL), "kafka"),
    (re.compile(rb"HTTP/"), "HTTP"),
    (re.compile(rb"SSH-"), "SSH"),
)


class _Names(NamedTuple):
    """The variables of a backend, and its servers."""

    prefix: str
    address: str
    password: str
    servers: Callable[[BusSettings], Sequence[HostPort]]


_BACKENDS = {
    "redis": _Names(
        "MSIGHT_REDIS_MESSAGE_BROKER_",
        "MSIGHT_REDIS_MESSAGE_BROKER_HOST={host} MSIGHT_REDIS_MESSAGE_BROKER_PORT={port}",
        "PASSWORD",
        lambda settings: () if settings.redis.unix_socket_path else settings.redis.nodes,
    ),
    "nats": _Names(
        "MSIGHT_NATS_",
        "MSIGHT_NATS_SERVERS=nats://{host}:{port}",
        "PASSWORD",
        lambda settings: [HostPort(server.host, server.port) for server in settings.nats.servers],
    ),
    "kafka": _Names(
        "MSIGHT_KAFKA_", "MSIGHT_KAFKA_SERVERS={host}:{port}", "SASL_PASSWORD", lambda settings: settings.kafka.servers
    ),
}


def of_setting(sentence: str) -> Finding:
    """Return the finding of a sentence of a `ConfigError` or a `ConfigWarning`."""
    found = _MISSPELT.match(sentence)
    if found is None:
        return Finding("settings", sentence, "Set the variable as this sentence states.")
    return Finding("settings", sentence, f'Rename the variable: `export {found[2]}="${found[1]}"; unset {found[1]}`.')


async def of_connection(error: BusError, settings: BusSettings) -> Finding:
    """Return why connecting failed, and what to do; asks the servers which protocol they speak."""
    names = _BACKENDS[settings.backend]
    if find_refused_certificate(error) is not None:
        return Finding("certificate", str(error), _advice_on_certificate(error, names))
    if isinstance(error, AuthenticationError):
        user = names.password.replace("PASSWORD", "USERNAME")
        assignments = f"{names.prefix}{names.password}=... {names.prefix}{user}=..."
        advice = f"Set the password, and where the broker has users the user, that the broker accepts: `export {assignments}`."
        return Finding("credentials", str(error), advice)
    kind = KINDS[settings.backend]  # type: ignore[index]  # not memory
    for server in names.servers(settings)[:_MOST_SERVERS]:
        protocol = await protocol_at(server)
        if protocol is None:
            continue
        if protocol == _VERIFYING and settings.backend == "nats" and settings.nats.tls_cert_file is None:
            return Finding("certificate", str(error), _set_certificate(names))  # the alert can be lost in a reset
        if protocol.startswith(settings.backend):
            return Finding("connection", str(error), "Correct what the broker reports.")
        address = names.address.format(host=server.host, port=kind.standard_port)
        problem = f"{server} answers with {protocol or 'another protocol, or TLS'}, not as {kind.label}. {error}"
        tls = "" if protocol else f" If the broker uses TLS: `export {names.prefix}USE_TLS=true`."
        other = _BACKENDS.get(protocol)
        if other is not None:
            use = f"MSIGHT_PUBSUB_BACKEND={protocol} {other.address.format(host=server.host, port=server.port)}"
            tls = f" If {server} is the right broker: `export {use}`."
        return Finding("protocol", problem, f"Set the port of {kind.label}: `export {address}`.{tls}")
    servers = names.servers(settings)
    if len(servers) == 1 and servers[0].host in ("127.0.0.1", "localhost"):
        advice = f"Start a broker at this address: `msight-bus up {settings.backend} --port {servers[0].port}`."
    else:
        address = names.address.format(host="HOST", port="PORT")
        advice = f"Start the broker at this address, or correct the address: `export {address}`."
    return Finding("broker", str(error), advice)


def _advice_on_certificate(error: BusError, names: _Names) -> str:
    code = getattr(find_refused_certificate(error), "verify_code", None)
    if code == _EXPIRED:
        return "Replace the broker's certificate, which has expired, and restart the broker."
    if code == _NOT_YET_VALID:
        return "Synchronize the clocks of this machine and of the broker's: `timedatectl set-ntp true`."
    if code in (_OTHER_HOST, _OTHER_ADDRESS):
        return f"Connect to a name that the certificate has: `export {names.address.format(host='NAME', port='PORT')}`."
    if code is None:  # an alert of the broker
        return _set_certificate(names)
    return f"Set the file of the authority that signed the certificate: `export {names.prefix}TLS_CA_CERT_FILE=ca.pem`."


def _set_certificate(names: _Names) -> str:
    files = f"{names.prefix}TLS_CERT_FILE=client.pem {names.prefix}TLS_KEY_FILE=client.key"
    return f"Set a certificate of this client that the broker trusts: `export {files}`."


async def protocol_at(server: HostPort) -> str | None:
    """Return the protocol of a server, ``""`` for an unknown one; ``None`` if nothing accepts connections."""
    reached = False
    for question in _QUESTIONS:
        try:
            async with asyncio.timeout(_REACHED_WITHIN):
                reader, writer = await asyncio.open_connection(server.host, server.port)
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            break
        reached, answer = True, b""
        try:
            writer.write(question)
            with suppress(OSError):
                async with asyncio.timeout(_ANSWERED_WITHIN):
                    answer = await reader.read(4096)
        finally:
            writer.transport.abort()
        for pattern, protocol in _ANSWERS:
            if pattern.match(answer):
                return protocol
    return "" if reached else None
