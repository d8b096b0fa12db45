"""TLS contexts, and refused certificates."""

from __future__ import annotations

import re
import ssl

from msight_bus.errors import ConfigError
from msight_bus.settings.redaction import chain

# The alerts by which a server refuses the client's certificate, or that there is none (RFC 8446, 6.2; before TLS 1.3
# that was a handshake failure).
_ALERTS = re.compile(r"ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)")


def make_context(
    prefix: str, ca_file: str | None, cert_file: str | None, key_file: str | None, *, verify: bool, check_hostname: bool
) -> ssl.SSLContext:
    """A context of PEM files. TLS 1.2 is the least.

    Args:
        prefix: what the names of the variables begin with.
        ca_file: the authorities to trust, instead of those of the system.
        cert_file: the client's own certificate.
        key_file: its key, without a passphrase.
        verify: whether the server's certificate is verified.
        check_hostname: whether it must be for the host that is connected to.

    Raises:
        ConfigError: a file is no certificate or key, or the two do not belong together.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(_unusable(f"{prefix}TLS_CA_CERT_FILE", "a file of certificates", error)) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = verify and check_hostname
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    if cert_file is not None:
        try:
            # A passphrase is never asked for: a service has no terminal to answer at.
            context.load_cert_chain(cert_file, key_file, password="")
        except (OSError, ValueError) as error:
            names = f"{prefix}TLS_CERT_FILE and {prefix}TLS_KEY_FILE"
            raise ConfigError(_unusable(names, "a certificate and its key, without a passphrase,", error)) from error
    return context


def _unusable(names: str, content: str, error: Exception) -> str:
    other = "none was found there" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
    reason = getattr(error, "reason", None) or other or "unreadable"
    return f"{names} must name {content} in PEM form, such as /etc/msight/tls.pem; {reason}."


def find_refused_certificate(error: BaseException) -> ssl.SSLError | None:
    """The refusal of a certificate, the server's or our own, behind an error of a client library, which may bury it."""
    for link in chain(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            return link
        if isinstance(link, ssl.SSLError) and _ALERTS.search(link.reason or ""):
            return link
    return None
