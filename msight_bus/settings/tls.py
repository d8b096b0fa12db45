"""TLS as all three backends configure it."""

from __future__ import annotations

import re
import ssl
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from msight_bus.errors import ConfigError
from msight_bus.settings.addresses import is_loopback
from msight_bus.settings.discretion import chain
from msight_bus.settings.kinds import Flag, ReadableFile
from msight_bus.settings.problems import ConfigWarning, InsecureWarning, Problem
from msight_bus.settings.section import Section

# The alerts by which a server refuses the client's certificate, or that there is none (RFC 8446, 6.2; before TLS 1.3
# that was a handshake failure).
_ALERTS = re.compile(r"ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to encrypt a connection.

    Attributes:
        prefix: what the names of its variables begin with.
        enabled: whether to encrypt at all.
        ca_cert_file: PEM file of the authorities to trust, instead of those of the system.
        cert_file: PEM file of the client's own certificate.
        key_file: PEM file of its key, without a passphrase.
        verify: whether the server's certificate is verified.
        check_hostname: whether it must be for the host that is connected to.
    """

    prefix: str
    enabled: bool
    ca_cert_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool = True
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext | None:
        """A new context that reads the files anew, or None if TLS is off. TLS 1.2 is the least.

        Raises:
            ConfigError: a file is no certificate or key, or the two do not belong together.
        """
        if not self.enabled:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_cert_file)
        except (OSError, ValueError) as error:
            raise ConfigError(self._unusable("TLS_CA_CERT_FILE", "a file of certificates", error)) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.verify and self.check_hostname
        if not self.verify:
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file is not None:
            try:
                # A passphrase is never asked for: a service has no terminal to answer at.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except (OSError, ValueError) as error:
                names = f"TLS_CERT_FILE and {self.prefix}TLS_KEY_FILE"
                raise ConfigError(
                    self._unusable(names, "a certificate and its key, without a passphrase,", error)
                ) from error
        return context

    def _unusable(self, names: str, content: str, error: Exception) -> str:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
        return f"{self.prefix}{names} must name {content} in PEM form, such as /etc/msight/tls.pem; {reason}."


def find_refused_certificate(error: BaseException) -> ssl.SSLError | None:
    """The refusal of a certificate, the server's or our own, behind an error of a client library, which may bury it."""
    for link in chain(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            return link
        if isinstance(link, ssl.SSLError) and _ALERTS.search(link.reason or ""):
            return link
    return None


class TlsSection(Section):
    """The settings of a backend that can be reached through TLS."""

    use_tls: Flag = Field(default=False, description="Encrypt connections.")
    tls_cert_file: ReadableFile | None = Field(default=None, description="The client's own certificate (PEM).")
    tls_key_file: ReadableFile | None = Field(default=None, description="The key of that certificate (PEM).")
    tls_ca_cert_file: ReadableFile | None = Field(
        default=None, description="Authorities to trust (PEM), instead of those of the system."
    )

    @property
    @abstractmethod
    def tls(self) -> TlsSettings:
        """How to encrypt connections."""

    @abstractmethod
    def _credentials(self) -> Sequence[str]:
        """The fields that are set and hold credentials."""

    @abstractmethod
    def _hosts(self) -> Sequence[str]:
        """The hosts that are connected to over a network."""

    def _tls(self, *, enabled: bool, verify: bool = True, check_hostname: bool = True) -> TlsSettings:
        return TlsSettings(
            prefix=self.prefix,
            enabled=enabled,
            ca_cert_file=self.tls_ca_cert_file,
            cert_file=self.tls_cert_file,
            key_file=self.tls_key_file,
            verify=verify,
            check_hostname=check_hostname,
        )

    def contradictions(self) -> Iterator[Problem]:
        """A certificate without its key, files that are none, and less verification of nothing."""
        tls = self.tls
        if (tls.cert_file is None) != (tls.key_file is None):
            given, missing = ("cert", "key") if tls.cert_file else ("key", "cert")
            sentence = f"{self._name(f'tls_{given}_file')} needs {self._name(f'tls_{missing}_file')} as well."
            yield Problem(("tls_cert_file", "tls_key_file"), sentence)
        elif tls.enabled:
            failures: tuple[str, ...] = ()
            try:
                tls.context()
            except ConfigError as error:
                failures = error.problems
            yield from (Problem(("tls_ca_cert_file",), failure) for failure in failures)
        if not tls.enabled:
            for field, on in (("tls_verify", tls.verify), ("tls_check_hostname", tls.check_hostname)):
                if not on:
                    sentence = (
                        f"{self._name(field)}=false means nothing without TLS; unset it, or set "
                        f"{self._name('use_tls')}=true."
                    )
                    yield Problem((field, "use_tls"), sentence)

    def notices(self) -> Iterator[Warning]:
        """Files without effect, verification that is off, credentials in clear text."""
        tls = self.tls
        if tls.enabled:
            for field, on in (("tls_verify", tls.verify), ("tls_check_hostname", tls.check_hostname)):
                if not on:
                    yield InsecureWarning(
                        f"{self._name(field)}=false: anybody on the way to the broker can pretend to be it."
                    )
            return
        for field in ("tls_cert_file", "tls_key_file", "tls_ca_cert_file"):
            if getattr(self, field) is not None:
                yield ConfigWarning(f"{self._name(field)} has no effect without {self._name('use_tls')}=true.")
        exposed = [host for host in self._hosts() if not is_loopback(host)]
        credentials = ", ".join(self._name(field) for field in self._credentials())
        if exposed and credentials:
            yield InsecureWarning(
                f"{credentials} would go to {exposed[0]} unencrypted; set {self._name('use_tls')}=true."
            )
