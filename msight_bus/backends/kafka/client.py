"""aiokafka's clients: their options, their errors as ours, and ending them in any state of the broker.

With `admin.py`, `consumer_compat.py` and `idempotence.py` the only module that touches the library's private attributes.
``stop()`` of a client waits for a broker that may never answer (aiokafka issues 1101 and 1039), so a client is ended by ending
its tasks and its connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import aiokafka.errors as kafka_errors
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from msight_bus.backends.failover import in_turn
from msight_bus.backends.kafka.credentials import Credentials
from msight_bus.backends.kafka.errors import translate
from msight_bus.errors import AuthenticationError, BusError, ConnectionLostError
from msight_bus.settings import BusSettings
from msight_bus.settings.discretion import hide_secrets
from msight_bus.tasks import start_with_grace


class _Discretion(logging.Filter):
    """aiokafka logs each request at DEBUG; one holds the password or the token, and an answer to it may quote them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(type(one).__name__ if _tells(one) else one for one in record.args)
        return True


def _tells(told: object) -> bool:
    api = getattr(told, "API_KEY", None)
    return api == SaslAuthenticateRequest.API_KEY or isinstance(told, kafka_errors.SaslAuthenticationFailed)


for _name in ("aiokafka.conn", "aiokafka.client"):
    logging.getLogger(_name).addFilter(_Discretion())


class _OAuth(OAuthAuthenticator):
    """Hears a refusal, which aiokafka takes for a success: it comes as a challenge (RFC 7628, 3.2.2 and 3.2.3)."""

    async def step(self, payload: bytes | None) -> tuple[bytes | str, bool] | None:
        return (b"\x01", True) if payload else await super().step(payload)


class _Probe(AIOKafkaConnection):
    def authenticator_oauth(self) -> _OAuth:
        return _OAuth(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


_send = AIOKafkaConnection.send


def _send_or_lose(connection: Any, request: Any, expect_response: bool = True) -> Any:
    """uvloop refuses to write to a transport that was closed just now, and a RuntimeError ends a producer for good."""
    try:
        return _send(connection, request, expect_response)
    except RuntimeError as error:
        raise kafka_errors.KafkaConnectionError("The connection was closed.") from error


AIOKafkaConnection.send = _send_or_lose


def client_options(settings: BusSettings, credentials: Credentials | None = None) -> dict[str, Any]:
    """Keyword arguments that producer, consumer and admin client share."""
    kafka = settings.kafka
    protocol = ("SASL_" if kafka.sasl_mechanism else "") + ("SSL" if kafka.tls.enabled else "PLAINTEXT")
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
    """Open and close one connection, because aiokafka's own bootstrap hides why it failed.

    Raises:
        AuthenticationError: credentials or certificate were refused.
        ConnectionLostError: no server can be reached.
    """
    names = ("client_id", "security_protocol", "ssl_context", "request_timeout_ms", "sasl_mechanism", "sasl_plain_username",
             "sasl_plain_password", "sasl_oauth_token_provider")  # fmt: skip
    shared = {name: options[name] for name in names if name in options}
    problem: BusError | None = None
    for server, within in in_turn(options["bootstrap_servers"], options["request_timeout_ms"] / 1000):
        host, _, port = server.rpartition(":")
        try:
            connection = _Probe(host.strip("[]"), int(port), **shared)
            async with asyncio.timeout(within):
                await connection.connect()
        except Exception as error:  # also what the client stumbles over when a peer talks nonsense
            token = options.get("sasl_oauth_token_provider")
            hide_secrets(error, [token.secret if token else options.get("sasl_plain_password", "")])
            problem = translate(error, "connect", f"at {server}")
            problem.__cause__ = error
            if isinstance(problem, AuthenticationError):
                raise problem from error
        else:
            connection.close()
            return
    raise problem or ConnectionLostError("No Kafka server is configured.")


def record_bytes(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Bytes at most that a record takes in a batch of its own."""
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)) + 64


async def start_client(client: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient) -> None:
    """Start a client; aiokafka forgets the connection that it asks for the first metadata when it is cancelled there."""
    await start_with_grace(client.start())


def record_appender(
    builder: BatchBuilder,
) -> Callable[[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]], object]:
    """The C builder's own ``append(number, timestamp, key, value, headers)``, ``None`` if the batch is full: half the time of
    aiokafka's. Who uses it counts the records, and gives their number to `close_batch`."""
    append: Callable[[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]], object] = (
        builder._builder.append
    )
    return append


def close_batch(builder: BatchBuilder, count: int) -> None:
    """End a batch that holds ``count`` records; the producer's sequence numbers go on by them."""
    builder._relative_offset = count
    builder.close()


async def end_tasks(tasks: list[asyncio.Task[Any] | None]) -> None:
    """Cancel until they are gone: one that catches the first cancellation gets the next."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for _ in range(50):
        if not alive:
            return
        for task in alive:
            task.cancel()
        await asyncio.sleep(0)
        alive = [task for task in alive if not task.done()]


async def close_client(client: Any) -> None:
    """End a client's connections at once."""
    if client._sync_task is not None and client._sync_task.done():
        client._sync_task = None  # its error would leave close() before the connections are closed
    for connection in list(client._conns.values()):
        if connection._writer is not None:
            connection._writer.transport.abort()
    await asyncio.wait((asyncio.ensure_future(client.close()),), timeout=2.0)


async def end_admin(admin: AIOKafkaAdminClient) -> None:
    """End an admin client at once."""
    await close_client(admin._client)


async def end_producer(producer: AIOKafkaProducer, requests: Iterable[asyncio.Task[Any]] = ()) -> None:
    """End a producer and its ``requests`` at once; what it had not sent is given up."""
    producer._closed = True
    producer._message_accumulator._closed = True
    await end_tasks([producer._sender.sender_task, *requests])
    await close_client(producer.client)
