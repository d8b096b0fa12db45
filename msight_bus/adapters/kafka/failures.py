"""aiokafka's errors as the bus's own."""

from __future__ import annotations

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


class InvalidRecordError(kafka_errors.BrokerResponseError):
    """INVALID_RECORD, which aiokafka does not know: a record without a key on a compacted topic, for instance."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The broker refused a record of the batch; a compacted topic takes none without a key."


kafka_errors.kafka_errors[InvalidRecordError.errno] = InvalidRecordError

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


def explain(error: BaseException, *, where: str = "") -> BusError:
    """The bus's error for one of aiokafka's."""
    if isinstance(error, BusError):
        return error
    at = f" at {where}" if where else ""
    text = str(error) or type(error).__name__
    if (certificate := find_refused_certificate(error)) is not None:
        return AuthenticationError(
            f"TLS with Kafka{at} was refused over a certificate: {certificate}; check the MSIGHT_KAFKA_TLS_ variables."
        )
    if isinstance(error, REFUSED):
        return AuthenticationError(f"Kafka{at} refused: {text}; check the MSIGHT_KAFKA_SASL_ variables.")
    if isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordTooLargeError):
        return MessageTooLargeError(f"Kafka{at} refused a message as too large: {text}", size=0, limit=0)
    if isinstance(error, kafka_errors.InvalidTopicError):
        return TopicError(f"Kafka{at} refused the topic: {text}")
    if isinstance(error, kafka_errors.KafkaTimeoutError | kafka_errors.RequestTimedOutError):
        return PublishTimeoutError(f"Kafka{at} did not answer in time: {text}")
    if isinstance(error, kafka_errors.KafkaConnectionError | OSError | TimeoutError):
        return ConnectionLostError(
            f"Kafka{at} cannot be reached: {text}. Is it running? `msight-bus up kafka` starts one; "
            "MSIGHT_KAFKA_SERVERS says where it is."
        )
    if not isinstance(error, kafka_errors.KafkaError):
        return ConnectionLostError(f"Kafka{at} does not answer as Kafka does ({type(error).__name__}: {text}).")
    return BusError(f"Kafka{at}: {text}")
