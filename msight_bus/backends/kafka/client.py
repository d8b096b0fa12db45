"""Arguments of aiokafka's clients, and a probe that reports why Kafka cannot be reached."""

from __future__ import annotations

import asyncio
from typing import Any

from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.aiokafka_compat import Connection
from msight_bus.backends.kafka.credentials import Credentials
from msight_bus.backends.kafka.errors import translate
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.settings import BusSettings
from msight_bus.settings.error_redaction import hide_secrets


def client_options(settings: BusSettings, credentials: Credentials | None = None) -> dict[str, Any]:
    """Return the keyword arguments that all clients share.

    Raises:
        ConfigError: a file of a secret or a certificate cannot be used.
    """
    kafka = settings.kafka
    protocol = ("SASL_" if kafka.sasl_mechanism else "") + ("SSL" if kafka.encrypted else "PLAINTEXT")
    options: dict[str, Any] = {
        "bootstrap_servers": [str(server) for server in kafka.servers],
        "client_id": settings.edge_device_name or "msight_bus",
        "security_protocol": protocol,
        **(credentials or Credentials(kafka))(),
        "request_timeout_ms": int(settings.limits.connect_timeout * 1000),
    }
    if kafka.sasl_mechanism:
        options["sasl_mechanism"] = kafka.sasl_mechanism
    return options


async def probe(options: dict[str, Any]) -> None:
    """Connect to one server and close the connection: aiokafka's bootstrap does not report why it failed.

    Args:
        options: see `client_options`.

    Raises:
        AuthenticationError: credentials or certificate were refused.
        ConnectionLostError: no server can be reached.
    """
    shared = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    problem: BusError | None = None
    for server, within in in_turn(options["bootstrap_servers"], options["request_timeout_ms"] / 1000):
        host, _, port = server.rpartition(":")
        try:
            connection = Connection(host.strip("[]"), int(port), **shared)
            async with asyncio.timeout(within):
                await connection.connect()
        except Exception as error:  # aiokafka raises anything if the peer sends invalid data
            token = options.get("sasl_oauth_token_provider")
            hide_secrets(error, [token.secret if token else options.get("sasl_plain_password", "")])
            problem = translate(error, "connect", f"at {server}")
            problem.__cause__ = error
            if isinstance(problem, AuthenticationError):
                raise problem from error
        else:
            connection.close()
            return
    raise problem or ConnectionLostError("No Kafka server is configured: set MSIGHT_KAFKA_SERVERS.")
