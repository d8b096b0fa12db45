from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msight_bus.errors import ConfigError
from msight_bus.settings import BusSettings, ConfigWarning

NAMES = [variable.name for variable in BusSettings.variables()]
SECRETS = [variable for variable in BusSettings.variables() if variable.secret]
REDIS_PASSWORD = "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD"


def password(environ) -> str:
    secret = BusSettings(environ=environ).redis.password
    assert secret is not None
    return secret.get_secret_value()


def test_bus_settings_read_the_environment(monkeypatch):
    monkeypatch.setenv("MSIGHT_PUBSUB_BACKEND", "NATS")
    monkeypatch.setenv("MSIGHT_NATS_SERVERS", "nats://elsewhere:4333")
    # Fields of the class, not variables of the bus.
    monkeypatch.setenv("BACKEND", "kafka")
    monkeypatch.setenv("NATS", "{}")
    settings = BusSettings()
    assert settings.backend == "nats"
    assert str(settings.nats.servers[0]) == "nats://elsewhere:4333"
    assert BusSettings(environ={}).backend == "redis"


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_is_unset(name):
    assert BusSettings(environ={name: ""}) == BusSettings(environ={})
    assert BusSettings(environ={f"{name}_FILE": ""}) == BusSettings(environ={})


@pytest.mark.filterwarnings("ignore::msight_bus.settings.ConfigWarning")  # a password without a user
@pytest.mark.parametrize("variable", SECRETS, ids=lambda variable: variable.name)
def test_each_secret_may_come_from_a_file(variable, tmp_path):
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    settings = BusSettings(environ={f"{variable.name}_FILE": str(file)}, backend="memory")
    section = getattr(settings, variable.section)
    assert getattr(section, variable.field).get_secret_value() == "from a file"


@pytest.mark.parametrize(
    ("content", "secret"), [(b"a", "a"), (b"a\n", "a"), (b"a\r\n", "a"), (b"a \n\n", "a \n"), ("ü".encode(), "ü")]
)
def test_one_newline_at_the_end_of_a_file_is_not_part_of_the_secret(content, secret, tmp_path):
    (tmp_path / "secret").write_bytes(content)
    assert password({f"{REDIS_PASSWORD}_FILE": str(tmp_path / "secret")}) == secret


def test_a_secret_in_a_file_has_at_most_64_kib(tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(b"a" * 65536)
    assert password({f"{REDIS_PASSWORD}_FILE": str(file)}) == "a" * 65536
    file.write_bytes(b"a" * 65537)
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        password({f"{REDIS_PASSWORD}_FILE": str(file)})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"\n"), "empty"),
        (lambda path: path.write_bytes(b"CANARY\xff"), "not UTF-8"),
        (lambda path: path.write_bytes(b"CANARY" * 20_000), "more than 65536 bytes"),
        (lambda path: path.mkdir(), "no such file"),
        (os.mkfifo, "no such file"),
        (lambda path: None, "no such file"),
    ],
    ids=["empty", "newline", "binary", "huge", "folder", "pipe", "missing"],
)
def test_a_file_that_holds_no_secret(make, reason, tmp_path):
    make(tmp_path / "CANARY")
    with pytest.raises(ConfigError, match=f"{REDIS_PASSWORD}_FILE must be the path of a file.*{reason}") as caught:
        BusSettings(environ={f"{REDIS_PASSWORD}_FILE": str(tmp_path / "CANARY")})
    assert "CANARY" not in str(caught.value)  # somebody may have set the secret itself


@pytest.mark.parametrize("path", ["CANARY" * 1000, "CANARY\0", "\ud800CANARY", 5, ["CANARY"]])
def test_a_path_that_is_none(path):
    with pytest.raises(ConfigError, match=f"{REDIS_PASSWORD}_FILE must be the path of a file") as caught:
        BusSettings(environ={f"{REDIS_PASSWORD}_FILE": path})
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("variable", SECRETS, ids=lambda variable: variable.name)
def test_a_secret_and_its_file_contradict_each_other(variable, tmp_path):
    (tmp_path / "secret").write_text("CANARY")
    environ = {variable.name: "CANARY", f"{variable.name}_FILE": str(tmp_path / "secret")}
    with pytest.raises(ConfigError, match=f"{variable.name} and {variable.name}_FILE are both set") as caught:
        BusSettings(environ=environ, backend=variable.section)
    assert "CANARY" not in str(caught.value)


def test_files_of_tls_are_paths_already(tmp_path):
    (tmp_path / "ca.pem").write_text("x")
    with pytest.warns(ConfigWarning, match="no effect without"):
        settings = BusSettings(environ={"MSIGHT_NATS_TLS_CA_CERT_FILE": str(tmp_path / "ca.pem")}, backend="nats")
    assert settings.nats.tls_ca_cert_file == str(tmp_path / "ca.pem")


def hint(name: str) -> str:
    with pytest.warns(ConfigWarning) as caught:
        BusSettings(environ={name: "x"})
    assert len(caught) == 1
    return str(caught[0].message)


PREFIXES = ["MSIGHT_REDIS_MESSAGE_BROKER_", "MSIGHT_NATS_", "MSIGHT_KAFKA_", "MSIGHT_"]
OWN = [(next(p for p in PREFIXES if name.startswith(p)), name) for name in NAMES]
LONG = [(prefix, name) for prefix, name in OWN if len(name.removeprefix(prefix)) > 6]


@given(st.sampled_from(LONG), st.data())
def test_a_missing_letter_gets_a_hint(prefix_and_name, draw):
    prefix, name = prefix_and_name
    at = draw.draw(st.integers(len(prefix), len(name) - 1))
    slip = name[:at] + name[at + 1 :]
    assert f"{slip} is not a variable of msight_bus and has no effect; did you mean MSIGHT_" in hint(slip)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MSIGHT_NATS_SERVER", "MSIGHT_NATS_SERVERS"),
        ("MSIGHT_NAT_SERVERS", "MSIGHT_NATS_SERVERS"),
        ("MSIGHT_KAFKA_SERVRES", "MSIGHT_KAFKA_SERVERS"),
        ("MSIGHT_REDIS_MESAGE_BROKER_HOST", "MSIGHT_REDIS_MESSAGE_BROKER_HOST"),
        ("MSIGHT_REDIS_MESSAGE_BROKER_PASWORD", "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD"),
        ("MSIGHT_NATS_PASSWORD_FIEL", "MSIGHT_NATS_PASSWORD_FILE"),
        ("MSIGHT_PUBSUB_BACKENDS", "MSIGHT_PUBSUB_BACKEND"),
        ("MSIGHT_STRICTT", "MSIGHT_STRICT"),
        ("MSIGHT_WIRES", "MSIGHT_WIRE"),
        ("MSIGHT_BACKEND", "MSIGHT_PUBSUB_BACKEND"),
        ("MSIGHT_NATS_TLS", "MSIGHT_NATS_USE_TLS"),
        ("MSIGHT_REDIS_TLS", "MSIGHT_REDIS_MESSAGE_BROKER_USE_TLS"),
        ("MSIGHT_REDIS_HOST", "MSIGHT_REDIS_MESSAGE_BROKER_HOST"),
        ("MSIGHT_REDIS_PASSWORD_FILE", "MSIGHT_REDIS_MESSAGE_BROKER_PASSWORD_FILE"),
    ],
)
def test_misspelt_names(name, meant):
    assert hint(name) == f"{name} is not a variable of msight_bus and has no effect; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    [
        "MSIGHT_AWS_REGION",
        "MSIGHT_S3_BUCKET",
        "MSIGHT_KAFKA_TOPIC",
        "MSIGHT_NATS_GROUP",
        "MSIGHT_REDIS_MESSAGE_BROKER_ZONE",
        "MSIGHT_DEVICE",
        "MSIGHT_",
        "NATS_SERVERS",
    ],
)
def test_other_names_get_none(name):
    BusSettings(environ={name: "x"})  # a warning would fail this test


def test_a_secret_in_a_file_is_read_anew_each_time(tmp_path):
    file = tmp_path / "secret"
    file.write_text("first")
    settings = BusSettings(environ={f"{REDIS_PASSWORD}_FILE": str(file)})
    secret = settings.redis.password
    assert secret is not None
    assert settings.redis.has_secret_files
    file.write_text("second\n")
    assert secret.get_secret_value() == "second"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=f"{REDIS_PASSWORD}_FILE must be the path of a file.*UTF-8"):
        secret.get_secret_value()
    file.unlink()
    with pytest.raises(ConfigError, match="there is no such file"):
        secret.get_secret_value()
    assert not BusSettings(environ={REDIS_PASSWORD: "a"}).redis.has_secret_files


@pytest.mark.parametrize("value", ["0", "-1", "nan", "-inf", "long", "86401"])
def test_a_patience_is_a_number_of_seconds_or_inf(value):
    with pytest.raises(ConfigError, match="MSIGHT_REFUSAL_PATIENCE must be a number of seconds.*or inf"):
        BusSettings(environ={"MSIGHT_REFUSAL_PATIENCE": value})


def test_tls_first_without_tls_is_told():
    with pytest.raises(ConfigError, match="MSIGHT_NATS_TLS_FIRST=true has no effect without TLS"):
        BusSettings(environ={"MSIGHT_NATS_TLS_FIRST": "true"}, backend="nats")
