"""TLS and SASL credentials of new connections. Changed files are read again, so they can be rotated."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from msight_bus.errors import ConfigError
from msight_bus.settings import KafkaSettings

logger = logging.getLogger("msight_bus")


class Token(AbstractTokenProvider):
    """An OAuth bearer token."""

    def __init__(self, token: str) -> None:
        self.secret = token

    async def token(self) -> str:
        return self.secret


class Credentials:
    """The TLS context and SASL credentials of the settings, from the current files.

    Attributes:
        can_change: whether credentials or certificates can change, because they come from files; otherwise a refusal is final.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        paths = (settings.tls_ca_cert_file, settings.tls_cert_file, settings.tls_key_file)
        self._files = [path for path in paths if path is not None] if settings.encrypted else []
        self.can_change = settings.has_secret_files or settings.encrypted
        self._former: dict[str, Any] | None = None
        self._seen: list[tuple[int, int, int]] = []
        self._context: ssl.SSLContext | None = None
        if settings.encrypted:
            self._seen = self._look()
            self._context = self._settings.ssl_context()

    def __call__(self) -> dict[str, Any]:
        """Return the current values of aiokafka's arguments ``ssl_context`` and ``sasl_...``.

        Raises:
            ConfigError: a file cannot be used, at the first call; later calls keep the previous values.
        """
        self._refresh_context()
        try:
            self._former = self._sasl()
        except ConfigError as error:
            if self._former is None:
                raise
            logger.warning("Changed secret cannot be used; keeping the previous one: %s", error)
        return {"ssl_context": self._context} | self._former

    def _sasl(self) -> dict[str, Any]:
        kafka = self._settings
        current: dict[str, Any] = {}
        if kafka.sasl_mechanism == "OAUTHBEARER":
            assert kafka.sasl_oauth_token is not None
            current["sasl_oauth_token_provider"] = Token(kafka.sasl_oauth_token.get_secret_value())
        elif kafka.sasl_mechanism:
            assert kafka.sasl_password is not None
            current["sasl_plain_username"] = kafka.sasl_username
            current["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
        return current

    def _refresh_context(self) -> None:
        if not self._files or (found := self._look()) == self._seen:
            return
        self._seen = found
        try:
            self._context = self._settings.ssl_context()
        except ConfigError as error:  # for example, the new certificate exists before its key
            logger.warning("Changed TLS files cannot be used; keeping the previous ones: %s", error)
        else:
            logger.info("Reloaded changed TLS files: %s", ", ".join(self._files))

    def _look(self) -> list[tuple[int, int, int]]:
        return [_identity(path) for path in self._files]


def _identity(path: str) -> tuple[int, int, int]:
    """Return modification time, size and inode, which change when a file is written or replaced; zeros for a missing file."""
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino
