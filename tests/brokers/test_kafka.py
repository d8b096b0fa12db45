"""Which Kafka is taken, and what a container is told."""

from __future__ import annotations

import pytest

from msight_bus.brokers import BrokerUnavailableError, kafka, kafka_docker, running, tansu
from msight_bus.brokers.errors import ServerNotFoundError
from msight_bus.brokers.kafka_node import cluster_id
from msight_bus.brokers.recipe import Instance

JAVA_17 = "echo 'openjdk version \"17.0.1\" 2021-10-19' >&2"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Make a shell script the only program of its name on PATH."""
    for variable in ("KAFKA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize("version", ['"1.8.0_402"', '"11.0.22" 2024-01-16', "nonsense"])
def test_old_java_is_no_java(version, programs):
    programs("java", f"echo 'openjdk version {version}' >&2")
    with pytest.raises(ServerNotFoundError, match="not Java 17 or newer"):
        kafka._maven(print)


def test_kafka_home_comes_first(programs, tmp_path, monkeypatch):
    programs("java", JAVA_17)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.2.1.jar").touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    recipe = running.find("kafka", print)
    assert (recipe.name, recipe.version) == ("Apache Kafka", "4.2.1")


def test_wrong_kafka_home_is_not_passed_over(programs, tmp_path, monkeypatch):
    programs("java", JAVA_17)
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path / "typo"))
    with pytest.raises(
        BrokerUnavailableError, match=r"KAFKA_HOME=.*typo cannot be used: .*Correct or unset KAFKA_HOME"
    ):
        running.find("kafka", print)


def test_maven_that_fails_is_passed_over_for_docker(programs):
    programs("java", JAVA_17)
    programs("mvn", "echo '[ERROR] unknown host'; exit 1")
    programs("docker", "exit 0")
    assert running.find("kafka", print).in_container


def test_maven_is_told_of_in_the_end(programs):
    programs("java", JAVA_17)
    programs("mvn", "echo '[ERROR] unknown host'; exit 1")
    programs("docker", "echo 'Cannot connect to the daemon' >&2; exit 1")
    with pytest.raises(BrokerUnavailableError, match=r"mvn failed: \[ERROR\] unknown host"):
        running.find("kafka", print)


def test_a_container_is_published_on_loopback_only(tmp_path, programs):
    programs("docker", "exit 0")
    instance = Instance(tmp_path, 29092, ["log.retention.ms=1", "advertised.listeners=CLIENT://127.0.0.1:{port}"])
    create, start = kafka_docker.find(print).commands(instance)
    assert create[create.index("--publish") + 1] == "127.0.0.1:29092:29092"
    assert "KAFKA_LOG_RETENTION_MS=1" in create
    assert "KAFKA_ADVERTISED_LISTENERS=CLIENT://127.0.0.1:29092" in create
    assert start == ["docker", "start", "--attach", tmp_path.name]


def test_an_image_that_is_missing_is_fetched(programs):
    programs("docker", '[ "$1" != image ]')
    said = []
    kafka_docker.find(said.append)
    assert said == ["pulling the image apache/kafka:4.1.0"]


def test_a_stand_in_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tansu.programs, "in_package", lambda module, pattern: "/bin/true")
    recipe = tansu.find(print)
    assert recipe.is_stand_in
    assert "stand-in" in recipe.name
    assert "tcp://127.0.0.1:29092" in recipe.commands(Instance(tmp_path, 29092))[0]
    with pytest.raises(BrokerUnavailableError, match="does not accept"):
        recipe.commands(Instance(tmp_path, 29092, ["a=b"]))


def test_cluster_ids_differ_and_are_no_options():
    ids = {cluster_id() for _ in range(200)}
    assert len(ids) == 200
    assert not any(one.startswith("-") or len(one) != 22 for one in ids)
