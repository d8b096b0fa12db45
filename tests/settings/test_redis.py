from __future__ import annotations

import pytest

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, ConfigWarning, InsecureWarning, RedisSettings

REDIS = "MSIGHT_REDIS_MESSAGE_BROKER_"


def redis(**variables: str) -> RedisSettings:
    return BusSettings(environ={f"{REDIS}{name}": value for name, value in variables.items()}).redis


def test_no_variable_is_needed():
    settings = redis()
    assert (settings.host, settings.port, settings.db, settings.wire) == ("localhost", 6379, 0, "framed")
    assert settings.nodes == (("localhost", 6379),)
    assert settings.ssl_context() is None


def test_every_variable_arrives(tmp_path):
    settings = redis(HOST="127.0.0.1", PORT="6380", DB="3", USERNAME="u", PASSWORD="p", UNIX_SOCKET_PATH="/run/r.sock")
    assert (settings.host, settings.port, settings.db, settings.username) == ("127.0.0.1", 6380, 3, "u")
    assert settings.password is not None
    assert settings.password.get_secret_value() == "p"
    assert settings.unix_socket_path == "/run/r.sock"
    assert BusSettings(environ={"MSIGHT_WIRE": "RAW"}).redis.wire == "raw"


def test_a_cluster_begins_with_its_nodes_or_with_host_and_port():
    assert redis(USE_CLUSTER="yes", CLUSTER_NODES="['a:1', 'b:2']").nodes == (("a", 1), ("b", 2))
    assert redis(USE_CLUSTER="yes", HOST="c").nodes == (("c", 6379),)


def test_nodes_without_a_cluster_have_no_effect():
    with pytest.warns(ConfigWarning, match=f"{REDIS}CLUSTER_NODES has no effect without {REDIS}USE_CLUSTER"):
        assert redis(CLUSTER_NODES="a:1").nodes == (("localhost", 6379),)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"USE_CLUSTER": "1", "UNIX_SOCKET_PATH": "/s"}, "USE_CLUSTER and .*UNIX_SOCKET_PATH exclude each other"),
        ({"USE_CLUSTER": "1", "DB": "2"}, "DB must be 0 with .*USE_CLUSTER"),
    ],
)
def test_contradictions(variables, sentence):
    with pytest.raises(ConfigError, match=sentence):
        redis(**variables)


def test_a_password_in_clear_text_is_loud_unless_it_stays_here():
    with pytest.warns(InsecureWarning, match=f"^{REDIS}PASSWORD would be sent to redis.example unencrypted"):
        redis(HOST="redis.example", PASSWORD="x")
    with pytest.warns(InsecureWarning, match=r"would be sent to b\.example"):
        redis(USE_CLUSTER="1", CLUSTER_NODES="localhost:1,b.example:2", PASSWORD="x")
    redis(HOST="127.0.0.1", PASSWORD="x")  # a warning would fail this test
    redis(HOST="redis.example", USE_TLS="1", PASSWORD="x")
    redis(HOST="redis.example", UNIX_SOCKET_PATH="/s", PASSWORD="x")


def test_a_unix_socket_is_not_encrypted():
    with pytest.warns(ConfigWarning, match="USE_TLS has no effect on .*UNIX_SOCKET_PATH"):
        assert redis(USE_TLS="1", UNIX_SOCKET_PATH="/s").ssl_context() is None
