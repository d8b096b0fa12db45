"""Every text that wrong settings are answered with, beside what caused it, in messages.txt.

``python -m tests.settings.test_messages`` writes the file; its diff shows which texts a change alters.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from msight_bus.settings import BusSettings, HostPort, KafkaSettings, Limits, NatsSettings, RedisSettings

GOLDEN = Path(__file__).with_name("messages.txt")
PROJECT = GOLDEN.parents[2]

R, N, K = "MSIGHT_REDIS_MESSAGE_BROKER_", "MSIGHT_NATS_", "MSIGHT_KAFKA_"
BAD_URLS = ["ws://a:80", "http://a", "nats://a:0", "nats://a/path", "nats://u:CANARY@", "nats://[::1", "nats://a b"]
BAD_LISTS = [
    "[]",
    "['a:1'",
    "[a:1]",
    "['a:1', 2]",
    "['a\\x41:1']",
    "a:1,,b:1",
    "a",
    "a:b",
    "a:99999",
    "kafka://a:1",
    "::1:1",
]

ENVIRONMENTS: list[dict[str, str]] = [
    # -- one wrong value each
    {"MSIGHT_PUBSUB_BACKEND": "rabbitmq"},
    {"MSIGHT_STRICT": "on"},
    {"MSIGHT_LOGGING_LEVEL": "LOUD"},
    {"MSIGHT_EDGE_DEVICE_NAME": "a\tb"},
    *({"MSIGHT_CONNECT_TIMEOUT": value} for value in ("0", "-1", "inf", "nan", "1s", "86401", "٣", "1_0", "1e-320")),
    *({"MSIGHT_REFUSAL_PATIENCE": value} for value in ("0", "-inf", "never", "٣")),
    *({"MSIGHT_QUEUE_MESSAGES": value} for value in ("0", "-5", "1.5", "1_0", "٣", "1000000001", "9" * 100)),
    {"MSIGHT_QUEUE_BYTES": "32MiB"},
    {"MSIGHT_MAX_NESTING": "201"},
    {"MSIGHT_MAX_HEADER_COUNT": "-1"},
    {"MSIGHT_WIRE": "json"},
    {f"{R}HOST": "redis://:CANARY@host"},
    {f"{R}HOST": "a b"},
    {f"{R}HOST": "::g"},
    {f"{R}PORT": "65536"},
    {f"{R}PORT": "tcp://10.0.0.1:6379"},
    {f"{R}DB": "x"},
    {f"{R}USE_TLS": "maybe"},
    {f"{R}USERNAME": "a\nb"},
    {f"{R}UNIX_SOCKET_PATH": "/" + "a" * 107},
    {f"{R}PASSWORD": "CANARY\udc80"},
    {f"{R}PASSWORD": "CANARY" * 20_000},
    *({f"{R}PASSWORD_FILE": path} for path in ("/none/CANARY", "/", "CANARY\0")),
    {f"{R}PASSWORD": "CANARY", f"{R}PASSWORD_FILE": "/none"},
    {f"{R}TLS_CA_CERT_FILE": "/none/ca.pem"},
    {f"{R}TLS_CA_CERT_FILE": "-----BEGIN CERTIFICATE-----\nCANARY"},
    *({f"{R}CLUSTER_NODES": text, f"{R}USE_CLUSTER": "1"} for text in BAD_LISTS),
    *({"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": text} for text in BAD_URLS),
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": "['nats://a', 'CANARY"},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": ",".join(["nats://a"] * 257)},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": "a" * 600},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": "a" * 70_000},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": "['a:4222']"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}SERVERS": "[::1]:7000, [::1]:7001"},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}USER_CREDENTIALS": "/none.creds"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}SASL_MECHANISM": "GSSAPI"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}REPLICATION": "101"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}LINGER_MS": "fast"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}PROFILE": "both"},
    {"MSIGHT_DEAD_LETTER_SUFFIX": "a/b"},
    {"MSIGHT_TOPIC_MAP": "camera@gs ne=camera.gs_ne"},
    {"MSIGHT_TOPIC_MAP": '["a", "b"]'},
    {"MSIGHT_TOPIC_MAP": "3"},
    {"MSIGHT_TOPIC_MAP": '{"a b": "c", "d e": "c"}'},
    {"MSIGHT_TOPIC_MAP": '{"a b": "c", "a b": "d"}'},
    {"MSIGHT_TOPIC_MAP": '{"a b": "c d"}'},
    {"MSIGHT_TOPIC_MAP": '{"a b": ["c"]}'},
    {"MSIGHT_TOPIC_MAP": '{"a b": "_msight.nodes"}'},
    {"MSIGHT_TOPIC_MAP": '{"_msight.nodes": "a"}'},
    {"MSIGHT_TOPIC_MAP": '{"": "a"}'},
    {"MSIGHT_TOPIC_MAP": '{"\\ud800": "a"}'},
    {"MSIGHT_TOPIC_MAP": "[" * 100_000},
    {"MSIGHT_TOPIC_MAP": '{"a": "b"}' + " " * 1024 * 1024},
    # -- values that contradict each other
    {"MSIGHT_RECONNECT_MIN": "3"},
    {f"{R}USE_CLUSTER": "1", f"{R}UNIX_SOCKET_PATH": "/s"},
    {f"{R}USE_CLUSTER": "1", f"{R}DB": "2"},
    {f"{R}USE_TLS": "1", f"{R}TLS_CERT_FILE": "pyproject.toml"},
    {f"{R}USE_TLS": "1", f"{R}TLS_KEY_FILE": "pyproject.toml"},
    {f"{R}USE_TLS": "1", f"{R}TLS_CERT_FILE": "pyproject.toml", f"{R}TLS_KEY_FILE": "pyproject.toml"},
    {f"{R}USE_TLS": "1", f"{R}TLS_CA_CERT_FILE": "pyproject.toml"},
    *({"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}{name}": "x"} for name in ("USERNAME", "PASSWORD", "USER_JWT")),
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}TLS_FIRST": "1"},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}TLS_VERIFY": "0"},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}TOKEN": "t", f"{N}NKEY_SEED": "s", f"{N}SERVERS": "nats://u:p@a"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}SASL_USERNAME": "u"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}SASL_OAUTH_TOKEN": "t"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}SASL_MECHANISM": "PLAIN"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}SASL_MECHANISM": "OAUTHBEARER", f"{K}SASL_PASSWORD": "p"},
    {"MSIGHT_PUBSUB_BACKEND": "kafka", f"{K}TLS_VERIFY": "0", f"{K}TLS_CHECK_HOSTNAME": "0"},
    # -- several at once, other backends, warnings
    {
        "MSIGHT_PUBSUB_BACKEND": "kafka",
        "MSIGHT_STRICT": "maybe",
        "MSIGHT_QUEUE_BYTES": "many",
        f"{K}PARTITIONS": "0",
        f"{K}SASL_USERNAME": "u",
        f"{K}TLS_CERT_FILE": "pyproject.toml",
        f"{R}PORT": "x",
    },
    {"MSIGHT_PUBSUB_BACKEND": "memory", f"{K}PARTITIONS": "0", f"{N}TOKEN": "t", f"{N}USERNAME": "u"},
    {"MSIGHT_PUBSUB_BACKEND": "rabbitmq", f"{K}PARTITIONS": "0"},
    {"MSIGHT_PUBSUB_BACKND": "nats"},
    {"MSIGHT_PUBSUB_BACKND": "nats", "MSIGHT_STRICT": "1"},
    {"MSIGHT_REDIS_HOST": "a", "MSIGHT_NATS_TLS": "1", f"{R}PASSWORD_FIEL": "CANARY"},
    {f"{R}CLUSTER_NODES": "a:1"},
    {f"{R}USE_TLS": "1", f"{R}UNIX_SOCKET_PATH": "/s"},
    {f"{R}TLS_CA_CERT_FILE": "pyproject.toml"},
    {f"{R}HOST": "redis.example", f"{R}PASSWORD": "CANARY"},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": "nats://u:CANARY@nats.example"},
    {"MSIGHT_PUBSUB_BACKEND": "nats", f"{N}SERVERS": "tls://a", f"{N}TLS_VERIFY": "0"},
    {
        "MSIGHT_PUBSUB_BACKEND": "kafka",
        f"{K}SERVERS": "kafka.example:9092",
        f"{K}SASL_MECHANISM": "PLAIN",
        f"{K}SASL_USERNAME": "u",
        f"{K}SASL_PASSWORD": "CANARY",
    },
]


def dumped(settings: BusSettings) -> BusSettings:
    """Settings made from the dump of others."""
    return BusSettings(environ={}, **settings.dump())


def assign(settings: BusSettings) -> BusSettings:
    settings.strict = True
    return settings


IN_CODE: dict[str, Callable[[], object]] = {
    "BusSettings(bakend='nats', nats=5, kafka={'server': 'a:1'}, limits={'queue_bytes': 0})": lambda: BusSettings(
        environ={}, bakend="nats", nats=5, kafka={"server": "a:1"}, limits={"queue_bytes": 0}
    ),
    "BusSettings(backend='rabbitmq', strict='maybe')": lambda: BusSettings(
        environ={}, backend="rabbitmq", strict="maybe"
    ),
    "BusSettings(backend=5, edge_device_name=['CANARY'])": lambda: BusSettings(
        environ={}, backend=5, edge_device_name=["CANARY"]
    ),
    "BusSettings(redis={1: 2})": lambda: BusSettings(environ={}, redis={1: 2}),
    "BusSettings(redis={'port': None, 'db': 1.0, 'host': None})": lambda: BusSettings(
        environ={}, redis={"port": None, "db": 1.0, "host": None}
    ),
    "BusSettings(redis={'username': None, 'port': 'x'})": lambda: BusSettings(
        environ={}, redis={"username": None, "port": "x"}
    ),
    "BusSettings(redis=NatsSettings())": lambda: BusSettings(environ={}, redis=NatsSettings()),
    "BusSettings(nats=NatsSettings(token='t', username='u', password='p'))": lambda: BusSettings(
        environ={}, nats=NatsSettings(token="t", username="u", password="p")
    ),
    "BusSettings(kafka={'sasl_username': 'u'})": lambda: BusSettings(environ={}, kafka={"sasl_username": "u"}),
    "BusSettings(nats={'password': 'CANARY', 'username': 5})": lambda: BusSettings(
        environ={}, nats={"password": "CANARY", "username": 5}
    ),
    "BusSettings(environ=5)": lambda: BusSettings(environ=5),
    "BusSettings(environ=['MSIGHT_STRICT=1'])": lambda: BusSettings(environ=["MSIGHT_STRICT=1"]),
    "BusSettings(environ={5: '5', 'MSIGHT_STRICT': 'x'})": lambda: BusSettings(environ={5: "5", "MSIGHT_STRICT": "x"}),
    "BusSettings(environ={'MSIGHT_NATS_PASSWORD': 5}, backend='nats')": lambda: BusSettings(
        environ={f"{N}PASSWORD": 5}, backend="nats"
    ),
    "BusSettings(environ={'MSIGHT_QUEUE_BYTES': 0})": lambda: BusSettings(environ={"MSIGHT_QUEUE_BYTES": 0}),
    "RedisSettings(port=0, wire='yaml', password=['CANARY'], hots='a')": lambda: RedisSettings(
        port=0, wire="yaml", password=["CANARY"], hots="a"
    ),
    "RedisSettings(5)": lambda: RedisSettings(5),
    "NatsSettings(servers=[], token='')": lambda: NatsSettings(servers=[], token=""),
    "NatsSettings(servers=['nats://u:CANARY@a:99999'])": lambda: NatsSettings(servers=["nats://u:CANARY@a:99999"]),
    "KafkaSettings(servers={'a:1'})": lambda: KafkaSettings(servers={"a:1"}),
    "KafkaSettings(servers=[HostPort('a', 0), HostPort('a b', 1)])": lambda: KafkaSettings(
        servers=[HostPort("a", 0), HostPort("a b", 1)]
    ),
    "Limits(max_nesting=True, connect_timeout=0, nothing=1)": lambda: Limits(
        max_nesting=True, connect_timeout=0, nothing=1
    ),
    "Limits(connect_timeout=1e-320, refusal_patience=float('inf'))": lambda: Limits(
        connect_timeout=1e-320, refusal_patience=float("inf")
    ),
    "the dump of BusSettings()": lambda: dumped(BusSettings(environ={})),
    "the dump of BusSettings() with secrets": lambda: dumped(
        BusSettings(environ={f"{N}SERVERS": "nats://u:CANARY@localhost", f"{R}PASSWORD": "CANARY"})
    ),
    "BusSettings().strict = True": lambda: assign(BusSettings(environ={})),
}


def answer(call: Callable[[], object]) -> list[str]:
    """What a call raises and warns of, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
            raised = []
        except Exception as error:
            texts = getattr(error, "problems", str(error).splitlines())
            raised = [re.sub(r"_ssl\.c:\d+", "_ssl.c", f"{type(error).__name__}: {text}") for text in texts]
    return raised + [f"{warning.category.__name__}: {warning.message}" for warning in caught] or ["accepted"]


def written(environ: dict[str, str]) -> str:
    """The variables as a shell has them, long values cut."""
    return " ".join(
        f"{name}={text!r}" if len(text) < 50 else f"{name}={text[:20]!r}... ({len(text)} characters)"
        for name, text in environ.items()
    )


def messages() -> str:
    """The text of the golden file."""
    cases = {
        written(environ): lambda environ=environ: BusSettings(environ=environ) for environ in ENVIRONMENTS
    } | IN_CODE
    return "\n".join("\n    ".join([title, *answer(call)]) + "\n" for title, call in cases.items())


def test_every_text_is_that_of_the_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(PROJECT)
    assert messages() == GOLDEN.read_text()


def test_no_text_has_a_secret():
    assert "CANARY" not in "".join(line for line in GOLDEN.read_text().splitlines(True) if line.startswith(" "))


if __name__ == "__main__":
    os.chdir(PROJECT)
    GOLDEN.write_text(messages())
