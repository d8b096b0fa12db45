"""Create TLS contexts, and recognize refused certificates."""

from __future__ import annotations

import re
import ssl

from msight_bus.errors import ConfigError
from msight_bus.settings.error_redaction import chain

# Alerts of a server that refuses the client's certificate, or requires one (RFC 8446, 6.2; before TLS 1.3 a handshake
# failure).
_ALERTS = re.compile(r"ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)")


def make_context(
    prefix: str, ca_file: str | None, cert_file: str | None, key_file: str | None, *, verify: bool, check_hostname: bool
) -> ssl.SSLContext:
    """Create a TLS context from PEM files. The minimum version is TLS 1.2.

    Args:
        prefix: prefix of the names of the variables, for errors.
        ca_file: trusted certificate authorities; default: those of the system.
        cert_file: certificate of the client.
        key_file: private key of ``cert_file``, without a passphrase.
        verify: whether to verify the server's certificate.
        check_hostname: whether to verify that the certificate is valid for the server's host name.

    Raises:
        ConfigError: a file has no certificate or key, or the key does not match the certificate.
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
            # An empty password prevents a prompt for the passphrase.
            context.load_cert_chain(cert_file, key_file, password="")
        except (OSError, ValueError) as error:
            names = f"{prefix}TLS_CERT_FILE and {prefix}TLS_KEY_FILE"
            raise ConfigError(_unusable(names, "a certificate and its key, without a passphrase,", error)) from error
    return context


def _unusable(names: str, content: str, error: Exception) -> str:
    other = (
        "the file has none, or they do not match"
        if isinstance(error, ssl.SSLError)
        else getattr(error, "strerror", None)
    )
    reason = getattr(error, "reason", None) or other or "unreadable"
    return f"{names} must name {content} in PEM form, such as /etc/msight/tls.pem; {reason}."


def find_refused_certificate(error: BaseException) -> ssl.SSLError | None:
    """Return the refusal of a certificate, the server's or the client's, among the causes of an error, or None."""
    for link in chain(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            return link
        if isinstance(link, ssl.SSLError) and _ALERTS.search(link.reason or ""):
            return link
    return None
