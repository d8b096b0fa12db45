"""aiokafka's errors as the bus's own."""

from __future__ import annotations

import asyncio
from typing import Literal

import aiokafka.errors as kafka_errors

from msight_bus.errors import (
    AuthenticationError,
    BusError,
    ConnectionLostError,
    MessageTooLargeError,
    PublishTimeoutError,
    TopicError,
)
from msight_bus.settings.tls import find_refused_certificate

Operation = Literal["connect", "publish", "subscribe", "administer"]
"""What failed: only a publish that times out has an outcome that nobody knows."""


class InvalidRecordError(kafka_errors.BrokerResponseError):
    """INVALID_RECORD, which aiokafka does not know: a record without a key on a compacted topic, for instance."""

    errno = 87
    message = "INVALID_RECORD"


class UnreachableBrokerError(kafka_errors.NodeNotReadyError):
    """A broker cannot be reached at the address that the cluster gives for it; its text names the address and the reason."""


_UNKNOWN_TO_AIOKAFKA: dict[int, type[kafka_errors.KafkaError]] = {InvalidRecordError.errno: InvalidRecordError}


def error_for(code: int) -> type[kafka_errors.KafkaError]:
    """The error of a code in an answer."""
    return _UNKNOWN_TO_AIOKAFKA.get(code) or kafka_errors.for_code(code)


REFUSED = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
)
"""What no retry can change: credentials or permissions are wrong."""

_NOT_PERMITTED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
)

_TIMEOUTS = (kafka_errors.KafkaTimeoutError, kafka_errors.RequestTimedOutError, asyncio.TimeoutError)
_UNREACHABLE = (kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError, OSError)


def translate(error: BaseException, operation: Operation, where: str = "") -> BusError:
    """The bus's error for one of a client's.

    Args:
        error: what was raised; a ``BusError`` is returned as it is.
        operation: what failed.
        where: which broker or topic, as ``"at localhost:9092"`` or ``"on 'site.cam'"``.
    """
    if isinstance(error, BusError):
        return error
    kafka = f"Kafka {where}" if where else "Kafka"
    text = str(error) or type(error).__name__
    if (certificate := find_refused_certificate(error)) is not None:
        return AuthenticationError(
            f"TLS with {kafka} was refused over a certificate: {certificate}; check the MSIGHT_KAFKA_TLS_ variables."
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
        return BusError(f"{kafka}: not committed, because the group has rebalanced; the records are delivered again.")
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
            f"{kafka} leads to a broker that cannot be reached: {text}. The address is what that broker tells its clients: "
            "check its advertised.listeners, and that this machine can resolve and reach it."
        )
    if isinstance(error, _UNREACHABLE):
        return ConnectionLostError(
            f"{kafka} cannot be reached: {text}. Check MSIGHT_KAFKA_SERVERS, or start a server with "
            "`msight-bus up kafka`."
        )
    if not isinstance(error, kafka_errors.KafkaError):
        return ConnectionLostError(f"{kafka} does not answer as Kafka does ({type(error).__name__}: {text}).")
    if kafka_errors.UnknownError.__name__ in text:
        return BusError(
            f"{kafka}: the broker refused with a code that aiokafka does not know, as where a group has group.max.size members; "
            "the broker's log says why."
        )
    return BusError(f"{kafka}: {text}")


def _refused_record(error: BaseException, kafka: str, text: str) -> BusError | None:
    """The error of a record that Kafka does not take, if that is what it is."""
    match error:
        case kafka_errors.MessageSizeTooLargeError() | kafka_errors.RecordTooLargeError():
            return MessageTooLargeError(
                f"{kafka} refused a message as too large (max.message.bytes of the topic): {text}"
            )
        case kafka_errors.RecordListTooLargeError():
            return MessageTooLargeError(
                f"{kafka} refused a message as larger than a segment of the log (segment.bytes of the topic)."
            )
        case InvalidRecordError():
            return BusError(
                f"{kafka} refused a record (INVALID_RECORD, code 87): a topic with cleanup.policy=compact takes none without "
                "a key; publish with key=..."
            )
        case kafka_errors.InvalidTimestampError():
            return BusError(
                f"{kafka} refused the time of a record (INVALID_TIMESTAMP): the clocks of this machine and of the broker "
                "differ by more than the topic's message.timestamp.after.max.ms or message.timestamp.before.max.ms "
                "permits; set the clocks right."
            )
        case (
            kafka_errors.UnknownTopicOrPartitionError()
            | kafka_errors.NotLeaderForPartitionError()
            | kafka_errors.LeaderNotAvailableError()
        ):
            return PublishTimeoutError(
                f"{kafka}: the partition of a message has no leader, or does not exist any more because the topic was made "
                f"anew ({type(error).__name__}); publish the message again."
            )
    return None
