from __future__ import annotations

import ssl

import pytest

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, HostPort, InsecureWarning, KafkaSettings

KAFKA = "MSIGHT_KAFKA_"
USER = {"SASL_USERNAME": "u", "SASL_PASSWORD": "p"}
TOKEN = {"SASL_OAUTH_TOKEN": "t"}


def kafka(**variables: str) -> KafkaSettings:
    return BusSettings(backend="kafka", environ={f"{KAFKA}{name}": value for name, value in variables.items()}).kafka


def test_defaults():
    settings = kafka()
    assert settings.servers == (HostPort("localhost", 9092),)
    assert (settings.partitions, settings.replication, settings.create_topics) == (4, None, True)
    assert (settings.tls_verify, settings.tls_check_hostname) == (True, True)


def test_every_variable_arrives():
    settings = kafka(
        SERVERS="['localhost:9093', '[::1]:9094']",
        PARTITIONS="8",
        REPLICATION="3",
        CREATE_TOPICS="no",
        LINGER_MS="0",
        BATCH_BYTES="1000",
        FETCH_BYTES="2000",
        PROFILE="Throughput",
        COMPRESSION="ZSTD",
        COMMIT_INTERVAL="0.5",
        SESSION_TIMEOUT="30",
        MAX_REDELIVERIES="0",
    )
    assert [str(server) for server in settings.servers] == ["localhost:9093", "[::1]:9094"]
    assert (settings.partitions, settings.replication, settings.create_topics) == (8, 3, False)
    assert (settings.linger_ms, settings.batch_bytes, settings.compression) == (0, 1000, "zstd")
    assert (settings.fetch_bytes, settings.profile) == (2000, "throughput")
    assert (settings.commit_interval, settings.session_timeout) == (0.5, 30.0)
    assert settings.max_redeliveries == 0


def test_a_profile_fills_in_what_is_not_set_by_itself():
    latency, throughput = kafka(PROFILE="latency").tuning, kafka(PROFILE="throughput").tuning
    assert kafka().tuning == latency
    assert latency.linger_ms == 0 < throughput.linger_ms
    assert latency.batch_bytes < throughput.batch_bytes
    assert latency.fetch_bytes < throughput.fetch_bytes
    own = kafka(PROFILE="throughput", LINGER_MS="0", BATCH_BYTES="1000").tuning  # a 0 is set, too
    assert (own.linger_ms, own.batch_bytes, own.fetch_bytes) == (0, 1000, throughput.fetch_bytes)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "scram-sha-512"])
def test_mechanisms_with_a_user(mechanism):
    assert kafka(SASL_MECHANISM=mechanism, **USER).sasl_mechanism == mechanism.upper()
    with pytest.raises(ConfigError, match=f"requires {KAFKA}SASL_PASSWORD.*\n.*requires {KAFKA}SASL_USERNAME"):
        kafka(SASL_MECHANISM=mechanism)
    with pytest.raises(ConfigError, match=f"does not use {KAFKA}SASL_OAUTH_TOKEN"):
        kafka(SASL_MECHANISM=mechanism, **USER, **TOKEN)


def test_the_mechanism_with_a_token():
    settings = kafka(SASL_MECHANISM="OAUTHBEARER", **TOKEN)
    assert settings.sasl_oauth_token is not None
    assert settings.sasl_oauth_token.get_secret_value() == "t"
    with pytest.raises(ConfigError, match=f"OAUTHBEARER requires {KAFKA}SASL_OAUTH_TOKEN"):
        kafka(SASL_MECHANISM="OAUTHBEARER")
    with pytest.raises(ConfigError, match=f"does not use {KAFKA}SASL_PASSWORD"):
        kafka(SASL_MECHANISM="OAUTHBEARER", **TOKEN, SASL_PASSWORD="p")


@pytest.mark.parametrize("name", [*USER, *TOKEN])
def test_credentials_without_a_mechanism(name):
    with pytest.raises(ConfigError, match=f"^{KAFKA}{name} requires {KAFKA}SASL_MECHANISM="):
        kafka(**{name: "x"})


def test_a_wrong_mechanism_is_the_only_thing_said_about_it():
    with pytest.raises(ConfigError) as caught:
        kafka(SASL_MECHANISM="GSSAPI", **USER)
    assert len(caught.value.problems) == 1
    assert "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER" in str(caught.value)


def test_credentials_in_clear_text_are_loud_unless_they_stay_here():
    with pytest.warns(InsecureWarning, match=rf"^{KAFKA}SASL_PASSWORD would be sent to kafka\.example unencrypted"):
        kafka(SERVERS="kafka.example:9092", SASL_MECHANISM="PLAIN", **USER)
    with pytest.warns(InsecureWarning, match=f"^{KAFKA}SASL_OAUTH_TOKEN would be sent"):
        kafka(SERVERS="kafka.example:9092", SASL_MECHANISM="OAUTHBEARER", **TOKEN)
    kafka(SERVERS="kafka.example:9092", SASL_MECHANISM="PLAIN", USE_TLS="1", **USER)  # no warning


@pytest.mark.parametrize("name", ["TLS_VERIFY", "TLS_CHECK_HOSTNAME"])
def test_turning_verification_off_is_loud(name):
    with pytest.warns(InsecureWarning, match=f"{KAFKA}{name}=false"):
        context = kafka(USE_TLS="1", **{name: "no"}).ssl_context()
    assert context is not None
    assert not context.check_hostname
    assert context.verify_mode is (ssl.CERT_NONE if name == "TLS_VERIFY" else ssl.CERT_REQUIRED)
    with pytest.raises(ConfigError, match=f"{KAFKA}{name}=false has no effect without TLS"):
        kafka(**{name: "no"})
