from __future__ import annotations

import pytest

from msight_bus.settings import BusSettings

REDIS, NATS, KAFKA = "MSIGHT_REDIS_MESSAGE_BROKER_", "MSIGHT_NATS_", "MSIGHT_KAFKA_"
TLS = ["USE_TLS", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_CERT_FILE"]

# What MSight deployments have set. Renaming one of these breaks them.
OF_MSIGHT = {
    "MSIGHT_PUBSUB_BACKEND",
    "MSIGHT_EDGE_DEVICE_NAME",
    "MSIGHT_LOGGING_LEVEL",
    *(REDIS + name for name in ("HOST", "PORT", "DB", "USERNAME", "PASSWORD", *TLS)),
    *(REDIS + name for name in ("USE_CLUSTER", "CLUSTER_NODES", "UNIX_SOCKET_PATH")),
    *(NATS + name for name in ("SERVERS", "USERNAME", "PASSWORD", "TOKEN", "NKEY_SEED", "USER_JWT")),
    *(NATS + name for name in ("USER_CREDENTIALS", *TLS, "TLS_VERIFY")),
    *(KAFKA + name for name in ("SERVERS", "SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD", "SASL_OAUTH_TOKEN")),
    *(KAFKA + name for name in (*TLS, "TLS_VERIFY", "TLS_CHECK_HOSTNAME")),
}
NEW = {
    "MSIGHT_STRICT",
    "MSIGHT_WIRE",
    *("MSIGHT_" + name for name in ("CONNECT_TIMEOUT", "PUBLISH_TIMEOUT", "BLOCK_TIMEOUT", "DRAIN_TIMEOUT")),
    *(
        "MSIGHT_" + name
        for name in (
            "PING_INTERVAL",
            "PONG_TIMEOUT",
            "RECONNECT_LIMIT",
            "RECONNECT_MIN",
            "RECONNECT_MAX",
            "REFUSAL_PATIENCE",
            "ANNOUNCE_INTERVAL",
        )
    ),
    *("MSIGHT_" + name for name in ("MAX_MESSAGE_BYTES", "MAX_DECODED_BYTES", "MAX_NESTING", "MAX_HEADER_COUNT")),
    *("MSIGHT_" + name for name in ("MAX_HEADER_BYTES", "MAX_IN_FLIGHT", "QUEUE_MESSAGES", "QUEUE_BYTES")),
    *(KAFKA + name for name in ("PARTITIONS", "REPLICATION", "CREATE_TOPICS", "PROFILE", "LINGER_MS", "UNKEYED")),
    *(
        KAFKA + name
        for name in (
            "BATCH_BYTES",
            "FETCH_BYTES",
            "COMPRESSION",
            "COMMIT_INTERVAL",
            "ISOLATION",
            "SESSION_TIMEOUT",
            "MAX_REDELIVERIES",
        )
    ),
    "MSIGHT_DEAD_LETTER_SUFFIX",
    NATS + "TLS_FIRST",
    "MSIGHT_PUBLISHER_TOPICS",
    "MSIGHT_TOPIC_MAP",
    "MSIGHT_STATS_TOPICS",
    "MSIGHT_ANNOUNCE",
}
VARIABLES = BusSettings.variables()


def test_the_names_are_those_that_were_promised():
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
    assert set(names) == OF_MSIGHT | NEW


def test_secrets_are_marked():
    secrets = {variable.name for variable in VARIABLES if variable.secret}
    assert secrets == {
        f"{REDIS}PASSWORD",
        *(NATS + name for name in ("PASSWORD", "TOKEN", "NKEY_SEED", "USER_JWT")),
        *(KAFKA + name for name in ("SASL_PASSWORD", "SASL_OAUTH_TOKEN")),
    }


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_each_variable_is_documented_and_its_default_is_what_it_says(variable):
    assert variable.value_type.accepts
    assert variable.meaning.endswith(".")
    assert len(variable.meaning) < 110
    environ = {} if variable.default is None else {variable.name: variable.default}
    assert BusSettings(environ=environ) == BusSettings(environ={})


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_each_variable_names_its_attribute(variable):
    settings = BusSettings(environ={})
    assert hasattr(getattr(settings, variable.section) if variable.section else settings, variable.field)
