"""Filters for aiokafka's loggers: retries are logged at DEBUG, credentials are hidden."""

from __future__ import annotations

import logging

import aiokafka.errors as kafka_errors
from aiokafka.protocol.admin import SaslAuthenticateRequest


class _RetriesAtDebug(logging.Filter):
    """Logs aiokafka's warnings about retries at DEBUG: the bus logs each problem itself, once, with its remedy.

    A record with a traceback reports a bug and keeps its level.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.exc_info:
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _Redaction(logging.Filter):
    """Replaces SASL requests and refusals by their type: aiokafka logs every request at DEBUG, the password or token included."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(type(each).__name__ if _is_secret(each) else each for each in record.args)
        return True


def _is_secret(logged: object) -> bool:
    api = getattr(logged, "API_KEY", None)
    return api == SaslAuthenticateRequest.API_KEY or isinstance(logged, kafka_errors.SaslAuthenticationFailed)


def install_log_filters() -> None:
    """Add both filters to aiokafka's loggers."""
    for name in (
        "aiokafka",
        "aiokafka.cluster",
        "aiokafka.conn",
        "aiokafka.consumer.group_coordinator",
        "aiokafka.coordinator.assignors.range",
        "aiokafka.coordinator.assignors.roundrobin",
    ):  # a logger's filter does not see the records of its child loggers
        logging.getLogger(name).addFilter(_RetriesAtDebug())
    for name in ("aiokafka.conn", "aiokafka.client"):
        logging.getLogger(name).addFilter(_Redaction())
