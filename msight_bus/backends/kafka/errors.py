"""Translates aiokafka's errors to those of the bus."""

from __future__ import annotations

import asyncio
from typing import Literal

import aiokafka.errors as kafka_errors

from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ClosedError,
    ConnectionLostError,
    MessageTooLargeError,
    PublishTimeoutError,
    TopicError,
)
from msight_bus.settings.tls import find_refused_certificate

Operation = Literal["connect", "publish", "subscribe", "administer"]
"""The operation that failed: only a publish that times out has an unknown outcome."""


class InvalidRecordError(kafka_errors.BrokerResponseError):
    """INVALID_RECORD, which aiokafka does not define; for example, a record without a key on a compacted topic."""

    errno = 87
    message = "INVALID_RECORD"


class ReplicaNotAvailableError(kafka_errors.BrokerResponseError):
    """REPLICA_NOT_AVAILABLE, from a broker that no longer has the partition; aiokafka does not retry it."""

    errno = 9
    message = "REPLICA_NOT_AVAILABLE"
    retriable = True
    invalid_metadata = True


class NetworkExceptionError(kafka_errors.BrokerResponseError):
    """NETWORK_EXCEPTION, from proxies; aiokafka does not retry it."""

    errno = 13
    message = "NETWORK_EXCEPTION"
    retriable = True
    invalid_metadata = True


class FencedInstanceIdError(kafka_errors.BrokerResponseError):
    """FENCED_INSTANCE_ID, which aiokafka does not define: a newer member has the same ``group.instance.id``.

    The arguments are the group and the ``group.instance.id``.
    """

    errno = 82
    message = "FENCED_INSTANCE_ID"


class UnreachableBrokerError(kafka_errors.NodeNotReadyError):
    """A broker cannot be reached at its advertised address; the text has the address and the reason."""


_OWN: dict[int, type[kafka_errors.KafkaError]] = {
    error.errno: error for error in (InvalidRecordError, ReplicaNotAvailableError, NetworkExceptionError)
}


def error_for(code: int) -> type[kafka_errors.KafkaError]:
    """Return the exception class of an error code."""
    return _OWN.get(code) or kafka_errors.for_code(code)


_NOT_PERMITTED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
)
REFUSED = (
    *_NOT_PERMITTED,
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
    FencedInstanceIdError,
)
"""Errors that no retry resolves: wrong credentials, missing permissions, or a newer member with the same identity."""

_TIMEOUTS = (kafka_errors.KafkaTimeoutError, kafka_errors.RequestTimedOutError, asyncio.TimeoutError)
_UNREACHABLE = (kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError, OSError)


def translate(error: BaseException, operation: Operation, where: str = "") -> BusError:
    """Return the bus's error for an error of aiokafka.

    Args:
        error: the error; a ``BusError`` is returned unchanged.
        operation: the operation that failed.
        where: broker or topic, for example ``"at localhost:9092"`` or ``"on 'site.cam'"``.
    """
    if isinstance(error, BusError):
        return error
    kafka = f"Kafka {where}" if where else "Kafka"
    text = str(error) or type(error).__name__
    if (certificate := find_refused_certificate(error)) is not None:
        return AuthenticationError(
            f"TLS with {kafka} was refused over a certificate: {certificate}; check the MSIGHT_KAFKA_TLS_ variables."
        )
    if isinstance(error, FencedInstanceIdError):
        group, instance_id = error.args
        return ClosedError(
            f"{kafka}: another member of the group {group!r} has started with the instance_id {instance_id!r} and has taken over "
            "the partitions. Give each worker an instance_id of its own, or stop a worker before starting it again."
        )
    if isinstance(error, _NOT_PERMITTED):
        return AuthenticationError(
            f"{kafka} refused: {text}; the user of MSIGHT_KAFKA_SASL_USERNAME needs an ACL that permits it."
        )
    if isinstance(error, REFUSED):
        return AuthenticationError(f"{kafka} refused: {text}; check the MSIGHT_KAFKA_SASL_ variables.")
    if operation == "publish" and (problem := _refused_record(error, kafka, text)) is not None:
        return problem
    if isinstance(error, kafka_errors.CommitFailedError):
        return BusError(f"{kafka}: commit failed because the group has rebalanced; the records are redelivered.")
    if isinstance(error, kafka_errors.InvalidSessionTimeoutError):
        return BusError(
            f"{kafka} refused the group's session timeout (MSIGHT_KAFKA_SESSION_TIMEOUT): the broker permits from "
            "group.min.session.timeout.ms to group.max.session.timeout.ms."
        )
    if isinstance(error, kafka_errors.InvalidTopicError):
        return TopicError(f"{kafka} refused the topic: {text}")
    if isinstance(error, _TIMEOUTS):
        if operation == "publish":
            return PublishTimeoutError(f"{kafka} did not acknowledge in time: {text}")
        return ConnectionLostError(f"{kafka} did not answer in time: {text}")
    if isinstance(error, UnreachableBrokerError):
        return ConnectionLostError(
            f"{kafka}: a broker of the cluster cannot be reached: {text}. Check the broker's advertised.listeners, and that this "
            "machine can resolve and reach the address."
        )
    if isinstance(error, _UNREACHABLE):
        return ConnectionLostError(
            f"{kafka} cannot be reached: {text}. Check MSIGHT_KAFKA_SERVERS, or start a server with "
            "`msight-bus up kafka`."
        )
    if not isinstance(error, kafka_errors.KafkaError):
        return ConnectionLostError(
            f"{kafka}: the peer does not speak the Kafka protocol ({type(error).__name__}: {text})."
        )
    if kafka_errors.UnknownError.__name__ in text:
        return BusError(
            f"{kafka} refused with an error code that aiokafka does not define: for example, the group has group.max.size "
            "members, or the topic names of all members exceed message.max.bytes. The broker's log has the reason."
        )
    return BusError(f"{kafka}: {text}")


def _refused_record(error: BaseException, kafka: str, text: str) -> BusError | None:
    """Return the error of a refused record; ``None`` for other errors."""
    match error:
        case kafka_errors.MessageSizeTooLargeError() | kafka_errors.RecordTooLargeError():
            return MessageTooLargeError(
                f"{kafka} refused a message as too large (max.message.bytes of the topic): {text}"
            )
        case kafka_errors.RecordListTooLargeError():
            return MessageTooLargeError(
                f"{kafka} refused a message as larger than a log segment (segment.bytes of the topic)."
            )
        case InvalidRecordError():
            return BusError(
                f"{kafka} refused a record (INVALID_RECORD): {text.rstrip('.')}; a topic with cleanup.policy=compact "
                "accepts only records with a key: publish with key=..."
            )
        case kafka_errors.InvalidTimestampError():
            return BusError(
                f"{kafka} refused the timestamp of a record (INVALID_TIMESTAMP): {text.rstrip('.')}; the clocks of this "
                "machine and of the broker differ by more than the topic's message.timestamp.after.max.ms or "
                "message.timestamp.before.max.ms permits; synchronize the clocks."
            )
        case (
            kafka_errors.UnknownTopicOrPartitionError()
            | kafka_errors.NotLeaderForPartitionError()
            | kafka_errors.LeaderNotAvailableError()
        ):
            return PublishTimeoutError(
                f"{kafka}: the partition of a message has no leader or no longer exists, for example because the topic was "
                f"created again ({type(error).__name__}); publish the message again."
            )
    return None
