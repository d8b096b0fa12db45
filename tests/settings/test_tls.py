from __future__ import annotations

import ssl
import warnings
from pathlib import Path

import pytest
import trustme

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, ConfigWarning, KafkaSettings

KAFKA = "MSIGHT_KAFKA_"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(ca, tmp_path) -> dict[str, str]:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("client@example")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=number > 0)
    return {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """Both ends of a TLS handshake in memory; the client's end."""
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ours = client.wrap_bio(pipes[0], pipes[1], server_hostname=host)
    theirs = server.wrap_bio(pipes[1], pipes[0], server_side=True)
    pending = [ours, theirs, ours, theirs, ours, theirs]
    for end in pending:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ours.version() is not None
    return ours


def server_context(ca: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(host).configure_cert(context)
    return context


def client_context(**options) -> ssl.SSLContext:
    context = KafkaSettings(use_tls=True, **options).ssl_context()
    assert context is not None
    return context


def test_off_is_no_context():
    assert KafkaSettings(use_tls=False).ssl_context() is None


def test_on_means_verified_with_the_host_name_and_tls_1_2():
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_server_of_the_given_authority_is_trusted(ca, files):
    handshake(client_context(tls_ca_cert_file=files["ca"]), server_context(ca, "broker.example"), "broker.example")


def test_the_wrong_host_the_wrong_authority_and_the_systems_own_are_refused(ca, files):
    server = server_context(ca, "broker.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client_context(tls_ca_cert_file=files["ca"]), server, "other.example")
    foreign = server_context(trustme.CA(), "broker.example")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
        handshake(client_context(tls_ca_cert_file=files["ca"]), foreign, "broker.example")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
        handshake(client_context(), server, "broker.example")


def test_checking_can_be_turned_off_for_the_host_name_or_altogether(ca, files):
    server = server_context(ca, "broker.example")
    handshake(client_context(tls_ca_cert_file=files["ca"], tls_check_hostname=False), server, "other.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context(tls_check_hostname=False), server, "broker.example")
    handshake(client_context(tls_verify=False), server, "other.example")


def test_the_client_shows_its_certificate(ca, files):
    server = server_context(ca, "broker.example")
    server.verify_mode = ssl.CERT_REQUIRED
    server.maximum_version = ssl.TLSVersion.TLSv1_2  # where the client's certificate is part of the handshake
    ca.configure_trust(server)
    handshake(
        client_context(tls_ca_cert_file=files["ca"], tls_cert_file=files["cert"], tls_key_file=files["key"]),
        server,
        "broker.example",
    )
    with pytest.raises(ssl.SSLError):
        handshake(client_context(tls_ca_cert_file=files["ca"]), server, "broker.example")


def test_versions_before_1_2_are_refused(ca, files):
    """The server and the client's ciphers permit TLS 1.1, so that nothing but the client's own minimum refuses it."""
    server, client = server_context(ca, "broker.example"), client_context(tls_ca_cert_file=files["ca"])
    for context in (server, client):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        server.minimum_version = ssl.TLSVersion.TLSv1
        server.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError, match="(?i)unsupported protocol|version"):
            handshake(client, server, "broker.example")
        client.minimum_version = ssl.TLSVersion.TLSv1
    assert handshake(client, server, "broker.example").version() == "TLSv1.1"


def kafka(**variables: str) -> KafkaSettings:
    environ = {f"{KAFKA}{name}": value for name, value in variables.items()}
    return BusSettings(backend="kafka", environ=environ).kafka


def test_the_variables_lead_to_a_context(files):
    paths = {
        f"TLS_{variable}_FILE": files[name] for variable, name in (("CA_CERT", "ca"), ("CERT", "cert"), ("KEY", "key"))
    }
    context = kafka(USE_TLS="yes", **paths).ssl_context()
    assert context is not None
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_a_certificate_and_its_key_belong_together(given, missing, files):
    name = f"{KAFKA}TLS_{given.upper()}_FILE"
    with pytest.raises(ConfigError, match=f"^{name} requires {KAFKA}TLS_{missing.upper()}_FILE; set both.$"):
        kafka(USE_TLS="1", **{f"TLS_{given.upper()}_FILE": files[given]})


def test_files_that_are_no_certificates_are_named_before_anything_is_connected(files, tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nCANARY\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=f"^{KAFKA}TLS_CA_CERT_FILE must name a file of certificates") as caught:
        kafka(USE_TLS="1", TLS_CA_CERT_FILE=str(junk))
    assert "CANARY" not in str(caught.value)
    for cert, key in ((str(junk), files["key"]), (files["cert"], str(junk)), (files["key"], files["cert"])):
        with pytest.raises(ConfigError, match=f"^{KAFKA}TLS_CERT_FILE and {KAFKA}TLS_KEY_FILE must name"):
            kafka(USE_TLS="1", TLS_CERT_FILE=cert, TLS_KEY_FILE=key)


def test_a_key_of_another_certificate(ca, files, tmp_path):
    other = tmp_path / "other.pem"
    ca.issue_cert("other@example").private_key_pem.write_to_path(other)
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        kafka(USE_TLS="1", TLS_CERT_FILE=files["cert"], TLS_KEY_FILE=str(other))


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(files, tmp_path):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files["key"]).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigError, match=f"{KAFKA}TLS_KEY_FILE must name a certificate and its key, without"):
        kafka(USE_TLS="1", TLS_CERT_FILE=files["cert"], TLS_KEY_FILE=str(encrypted))


def test_a_wrong_switch_is_the_only_thing_said_about_it():
    with pytest.raises(ConfigError) as caught:
        kafka(USE_TLS="maybe", TLS_VERIFY="false")
    assert len(caught.value.problems) == 1


def test_files_without_tls_are_a_warning_each(files):
    with pytest.warns(ConfigWarning) as caught:
        kafka(TLS_CA_CERT_FILE=files["ca"], TLS_CERT_FILE=files["cert"], TLS_KEY_FILE=files["key"])
    assert sorted(str(warning.message).split()[0] for warning in caught) == [
        f"{KAFKA}TLS_CA_CERT_FILE",
        f"{KAFKA}TLS_CERT_FILE",
        f"{KAFKA}TLS_KEY_FILE",
    ]
